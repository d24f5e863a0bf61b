"""Refuse weights with NaN or infinite values, from a run that diverged."""

from collections.abc import Mapping

import numpy as np

from tood_jax.weights.mapping import WeightsError

_MAX_NAMES = 4  # of tensors in a message


def check_finite(tensors: Mapping[str, np.ndarray], where: object) -> None:
    """Check that all values are finite.

    Args:
        tensors: of any dtype; integers and booleans are always finite.
        where: the name of the file or checkpoint, for the message.

    Raises:
        WeightsError: names tensors with NaN or infinite values and counts these.
    """
    counts = {name: _count_non_finite(array) for name, array in tensors.items()}
    bad = [f"{name} ({count:,} of {tensors[name].size:,})" for name, count in counts.items() if count]
    if bad:
        more = f" and {len(bad) - _MAX_NAMES} more" if len(bad) > _MAX_NAMES else ""
        raise WeightsError(
            f"{where} has values that are NaN or infinite in {len(bad)} of {len(tensors)} tensors, "
            f"{', '.join(bad[:_MAX_NAMES])}{more}: the run that they are from had diverged, so use weights from before."
        )


def _count_non_finite(array: np.ndarray) -> int:
    """Return the number of values that are not finite."""
    if array.dtype.kind in "iub":
        return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))
