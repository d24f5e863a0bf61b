"""Checksums of a checkpoint's arrays: a CRC32 a leaf or, where several processes hold parts of it, one a part.

A table has for each leaf {"shape": [...], "dtype": str, "crc32": n}, or instead of the last
"parts": [[[[start, stop] of each axis], n], ...], which together cover the array.
"""

import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tood_jax.training.messages import from_all

Table = dict[str, dict[str, Any]]
_Span = list[list[int]]  # [start, stop] of each axis
_THREADS = 4


def crc32_all(arrays: Iterable[np.ndarray]) -> list[int]:
    """CRC32 of each array's bytes in C order; zlib lets go of the GIL, so threads help."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda a: zlib.crc32(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data), arrays))


def describe_leaves(arrays: Mapping[str, np.ndarray]) -> Table:
    """Table of whole arrays."""
    sums = crc32_all(arrays.values())
    return {name: _outside(a) | {"crc32": crc} for (name, a), crc in zip(arrays.items(), sums, strict=True)}


def describe_global(arrays: Mapping[str, jax.Array]) -> Table:
    """Table of arrays over the devices of many processes, the same in all of them; each sums up what it holds."""
    held = [
        (name, shard)
        for name, a in arrays.items()
        for shard in a.addressable_shards
        if shard.replica_id == 0 and a.size
    ]
    # By their data, not `np.asarray(array)`: a view held by the array itself would bar its buffer from donation.
    sums = crc32_all(np.asarray(shard.data) for _, shard in held)
    own = [
        (name, [list(part.indices(n)[:2]) for part, n in zip(shard.index, arrays[name].shape, strict=True)], crc)
        for (name, shard), crc in zip(held, sums, strict=True)
    ]
    parts: dict[str, list[tuple[_Span, int]]] = {name: [] for name in arrays}
    for name, span, crc in (one for process in from_all(own) for one in process):
        parts[name].append((span, crc))
    table = {}
    for name, a in arrays.items():
        whole = not a.size or a.is_fully_replicated
        crc = parts[name][0][1] if parts[name] else 0  # the sum of nothing is 0
        table[name] = _outside(a) | ({"crc32": crc} if whole else {"parts": sorted(map(list, parts[name]))})
    return table


def wrong_leaves(arrays: Mapping[str, np.ndarray], table: Table) -> list[str]:
    """Names of the whole arrays that the table describes otherwise."""
    bad = {name for name, a in arrays.items() if _outside(a) != {key: table[name].get(key) for key in _outside(a)}}
    pieces = [
        (name, piece, crc) for name, a in arrays.items() if name not in bad for piece, crc in _pieces(a, table[name])
    ]
    now = crc32_all(piece for _, piece, _ in pieces)
    bad |= {name for (name, _, crc), found in zip(pieces, now, strict=True) if crc != found}
    return [name for name in arrays if name in bad]


def _outside(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _pieces(array: np.ndarray, leaf: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    if "parts" not in leaf:
        return [(array, leaf["crc32"])]
    return [(array[tuple(slice(*ends) for ends in span)], crc) for span, crc in leaf["parts"]]
