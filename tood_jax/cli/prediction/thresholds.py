"""The smallest score of each class that is drawn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tood_jax.report.analysis import DEFAULT_THRESHOLD
from tood_jax.untrusted.bounded_json import as_number


def class_thresholds(given: float | None, about: Mapping[str, Any], classes: int) -> np.ndarray:
    """Return the smallest score of each class that is drawn, [C].

    Args:
        given: for all classes; None for the best of each, as `evaluate_set` found it.
        about: of the checkpoint, which may come from elsewhere.
        classes: number of classes.
    """
    metrics = about.get("metrics")
    stored = metrics.get("thresholds") if given is None and isinstance(metrics, Mapping) else None
    if not isinstance(stored, list) or len(stored) != classes:
        return np.full(classes, DEFAULT_THRESHOLD if given is None else given)
    best = (as_number(value) for value in stored)
    return np.asarray([value if value is not None and 0 <= value <= 1 else DEFAULT_THRESHOLD for value in best])


def describe_thresholds(thresholds: np.ndarray) -> str:
    """Return the thresholds in words."""
    low, high = thresholds.min(), thresholds.max()
    return f"{low:.3g}" if low == high else f"the best threshold of their class ({low:.2f} to {high:.2f})"
