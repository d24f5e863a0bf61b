"""Differences of two results, and whether they are within tolerance."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tood_jax.tools.compare_torch.implementation import ImageDetections


class Tolerances(NamedTuple):
    """Largest relative difference of each kind of result."""

    maps: float
    detections: float
    losses: float
    gradients: float  # of a single tensor
    whole_gradient: float  # of all tensors together
    trajectory: float


# Single precision: rounding is 1e-6 to 1e-5 of a map. Gradients are discontinuous: where a pre-activation is so near to
# zero (or a sampling offset so near to an integer) that rounding decides the sign, the contribution of a location is
# all or nothing, and a trajectory amplifies it step by step. In double precision this is negligible.
SINGLE = Tolerances(maps=1e-4, detections=1e-4, losses=1e-3, gradients=0.1, whole_gradient=3e-2, trajectory=5e-2)
DOUBLE = Tolerances(maps=1e-11, detections=1e-11, losses=1e-11, gradients=1e-10, whole_gradient=1e-10, trajectory=1e-9)


class Difference(NamedTuple):
    """The difference of two arrays."""

    group: str  # maps, losses atss, gradients tal, …
    name: str
    absolute: float  # largest
    relative: float  # largest absolute over the peer's largest value; of a gradient, norm of the difference over norm
    tolerance: float
    shape: tuple[int, ...] = ()
    largest: float = 0.0  # the peer's largest absolute value

    @property
    def within(self) -> bool:
        return self.relative <= self.tolerance  # False for NaN


def difference(
    group: str, name: str, own: np.ndarray, peer: np.ndarray, tolerance: float, *, by_norm: bool = False
) -> Difference:
    """Return the difference of two arrays; it is infinite if shapes differ or a number is not finite.

    Args:
        group: kind of result, for reports.
        name: name of the array, for reports.
        own: array of this package.
        peer: array of the peer.
        tolerance: largest relative difference.
        by_norm: compute the relative difference of the L2 norms instead of the largest values.
    """
    own, peer = np.asarray(own, "f8"), np.asarray(peer, "f8")
    if own.shape != peer.shape or not (np.isfinite(own).all() and np.isfinite(peer).all()):
        return Difference(group, name, np.inf, np.inf, tolerance, peer.shape)
    absolute, largest = (float(np.abs(values).max(initial=0)) for values in (own - peer, peer))
    distance, size = (np.linalg.norm(own - peer), np.linalg.norm(peer)) if by_norm else (absolute, largest)
    relative = 0.0 if distance == 0 else float(distance / size) if size else np.inf
    return Difference(group, name, absolute, relative, tolerance, peer.shape, largest)


def gradient_differences(
    group: str, own: Mapping[str, np.ndarray], peer: Mapping[str, np.ndarray], tolerances: Tolerances
) -> list[Difference]:
    """Return the differences of every gradient and of all together; frozen parameters must have a gradient of zero."""
    found = [
        difference(group, name, own[name], gradient, tolerances.gradients, by_norm=True)
        for name, gradient in peer.items()
    ]
    found += [
        difference(group, f"{name} (frozen)", array, np.zeros_like(array), tolerances.gradients)
        for name, array in own.items()
        if name not in peer and not name.endswith(("running_mean", "running_var"))
    ]
    a, b = (np.concatenate([gradients[name].ravel() for name in peer]) for gradients in (own, peer))
    return [*found, difference(group, "all together", a, b, tolerances.whole_gradient, by_norm=True)]


def pair_up(own: ImageDetections, peer: ImageDetections) -> list[tuple[int | None, int | None]]:
    """Return pairs of positions of the same detection, best first; None where an implementation does not have it.

    Pairs have the same label and the nearest boxes, so that detections of nearly equal scores may be in any order.
    """
    remaining, pairs = list(range(len(peer.scores))), []
    for i in range(len(own.scores)):
        same = [j for j in remaining if peer.labels[j] == own.labels[i]]
        near = min(same, key=lambda j: _distance(own.boxes[i], peer.boxes[j]), default=None)
        if near is not None and _distance(own.boxes[i], peer.boxes[near]) > 0.1 * _longer_side(peer.boxes[near]):
            near = None
        if near is not None:
            remaining.remove(near)
        pairs.append((i, near))
    return [*pairs, *((None, j) for j in remaining)]


def detection_differences(
    own: ImageDetections, peer: ImageDetections, image: int, tolerance: float, *, floor: float, limit: int
) -> list[Difference]:
    """Return the differences in number, scores and boxes of an image's detections.

    A missing detection counts, unless rounding may have removed it: its score is within the tolerance of the threshold
    `floor`, or of the last score of an implementation with `limit` detections.
    """
    pairs = pair_up(own, peer)
    both = [(i, j) for i, j in pairs if i is not None and j is not None]
    i, j = [i for i, _ in both], [j for _, j in both]

    def count_missing(scores: np.ndarray, other: ImageDetections) -> float:
        edges = [floor, *(other.scores[-1:] if len(other.scores) == limit else ())]
        return float(sum(min(abs(score - edge) for edge in edges) > tolerance for score in scores))

    missing = count_missing(own.scores[[i for i, j in pairs if i is not None and j is None]], peer)
    missing += count_missing(peer.scores[[j for i, j in pairs if j is not None and i is None]], own)
    group, name = "detections", f"image {image}: only on one side"
    return [
        Difference(group, name, missing, np.inf if missing else 0.0, tolerance),
        difference(group, f"image {image}: scores", own.scores[i], peer.scores[j], tolerance),
        difference(group, f"image {image}: boxes", own.boxes[i], peer.boxes[j], tolerance),
    ]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def _longer_side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))
