"""Compare two sets of detections of the same images: is the difference of AP more than chance?

Paired bootstrap: each sample draws the images once and computes AP of both on them, so that hard and easy images weigh
on both alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tood_jax.evaluation.matches import AveragePrecision, bootstrap, interval, match, mean_defined


class Difference(NamedTuple):
    """A number of two sets of detections, 0–1; NaN where it is not defined."""

    name: str
    first: float
    second: float
    low: float  # of second - first: 95 % of the bootstrap samples lie between low and high
    high: float

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" where the interval does not contain 0: the second set, compared with the first."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not clear"


def compare_results(
    ground_truth: Mapping[str, Any], first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[Difference]:
    """Return the differences of AP, AP50, AP75, and AP of each class in the order of the category ids.

    Needs hotcoco.

    Args:
        ground_truth: as of `coco_ap.evaluate`.
        first: COCO results.
        second: COCO results of the same images.

    Raises:
        ValueError: as `coco_ap.evaluate`.
    """
    both = [match(ground_truth, results) for results in (first, second)]
    names = [str(category["name"]) for category in sorted(ground_truth["categories"], key=lambda one: one["id"])]
    values = [_numbers(AveragePrecision(one)()[None])[0] for one in both]
    samples = [_numbers(ap) for ap in bootstrap(both)]
    low, high = interval(samples[1] - samples[0])
    rows = zip(["AP", "AP50", "AP75", *names], *values, low, high, strict=True)
    return [Difference(name, *map(float, numbers)) for name, *numbers in rows]


def _numbers(ap: np.ndarray) -> np.ndarray:
    """Return AP, AP50, AP75 and AP of each class, [S, 3 + C], of AP [S, T, C]."""
    means = [mean_defined(ap, (1, 2)), mean_defined(ap[:, 0], 1), mean_defined(ap[:, 5], 1)]
    return np.concatenate([np.stack(means, axis=1), mean_defined(ap, 1)], axis=1)
