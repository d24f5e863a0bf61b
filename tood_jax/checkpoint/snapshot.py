"""Copy a state to the host for a save, with the checksums of its leaves."""

from typing import Any

import jax
import numpy as np

from tood_jax.checkpoint.checksums import Table, describe_global, describe_leaves
from tood_jax.checkpoint.reader import named_leaves, nest


def take_snapshot(state: Any) -> tuple[dict[str, Any], Table]:
    """Return (nested dict of arrays for Orbax, table of leaves); later donations of the state cannot change the arrays.

    Empty arrays are in the table only: Orbax refuses them.
    """
    leaves = named_leaves(state)
    if jax.process_count() > 1:  # Orbax copies this process's parts to the host before its `save` returns
        return nest({name: leaf for name, leaf in leaves.items() if leaf.size}), describe_global(leaves)
    host = {name: _copy_to_host(leaf) for name, leaf in leaves.items()}
    return nest({name: array for name, array in host.items() if array.size}), describe_leaves(host)


def _copy_to_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        # The copy of a shard: a view held by the array itself would prevent the donation of its buffer.
        return np.array(leaf.addressable_data(0))
    return np.array(leaf)
