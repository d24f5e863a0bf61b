"""Repeat-factor sampling: images with rare classes occur more than once in an epoch.

Source: Gupta et al., LVIS (2019), section 5.2 and appendix B.
"""

import math

import numpy as np


def repeat_factors(labels: list[np.ndarray], threshold: float) -> np.ndarray:
    """Return [n] float64 ≥ 1, how often each image occurs in the mean: max over its classes c of √(threshold / f(c)).

    f(c) is the share of the images that have class c. Images without objects have the factor 1.

    Args:
        labels: the classes of the objects of each image.
        threshold: t, 0–1; classes with f(c) ≥ t do not repeat an image.
    """
    classes = [np.unique(one) for one in labels]
    images_with = np.bincount(np.concatenate([*classes, np.zeros(0, np.int64)]).astype(np.int64))
    with np.errstate(divide="ignore"):  # classes between the others that no image has
        by_class = np.maximum(1.0, np.sqrt(threshold * len(labels) / images_with))
    return np.asarray([by_class[one].max(initial=1.0) for one in classes])


def draw_counts(factors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return [n] int, how often each image occurs in one epoch: its factor, rounded down or up at random.

    Systematic sampling: the images lie on a line in random order, each as long as its factor, and each whole number
    from a random start hits one. So the counts have the factors as their means, and their sum is the sum of the
    factors, rounded down (one image is left out where a whole number more would fit).
    """
    order = random.permutation(len(factors))
    total = math.floor(factors.sum())
    ends = np.minimum(np.floor(np.cumsum(factors[order]) + random.random()).astype(np.int64), total)
    ends[-1] = total  # the two sums may differ in their last bits
    counts = np.empty(len(factors), np.int64)
    counts[order] = np.diff(ends, prepend=0)
    return counts
