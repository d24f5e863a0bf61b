"""How far two answers are apart, and whether that is near enough."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tood_jax.torch_reference.comparison.sides import Found


class Tolerances(NamedTuple):
    """Largest relative difference of each kind of number."""

    maps: float
    detections: float
    losses: float
    gradients: float  # of one tensor
    whole_gradient: float  # of all of them together
    trajectory: float


# Single precision: rounding is 1e-6 to 1e-5 of a map. Gradients have kinks: where a pre-activation lies so near to zero
# (or a sampling offset so near to a whole cell) that rounding decides the side, one cell's share of them is all or
# nothing, and a trajectory amplifies it step by step. Double precision leaves none of that.
SINGLE = Tolerances(maps=1e-4, detections=1e-4, losses=1e-3, gradients=0.1, whole_gradient=3e-2, trajectory=5e-2)
DOUBLE = Tolerances(maps=1e-11, detections=1e-11, losses=1e-11, gradients=1e-10, whole_gradient=1e-10, trajectory=1e-9)


class Difference(NamedTuple):
    """Of one array."""

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
    group: str, name: str, ours: np.ndarray, peer: np.ndarray, tolerance: float, *, by_norm: bool = False
) -> Difference:
    """Of two arrays that should be equal; another shape or a number that isn't finite is infinitely far.

    Args:
        by_norm: the relative difference is that of the L2 norms instead of the largest values.
    """
    ours, peer = np.asarray(ours, "f8"), np.asarray(peer, "f8")
    if ours.shape != peer.shape or not (np.isfinite(ours).all() and np.isfinite(peer).all()):
        return Difference(group, name, np.inf, np.inf, tolerance, peer.shape)
    absolute, largest = (float(np.abs(values).max(initial=0)) for values in (ours - peer, peer))
    apart, size = (np.linalg.norm(ours - peer), np.linalg.norm(peer)) if by_norm else (absolute, largest)
    relative = 0.0 if apart == 0 else float(apart / size) if size else np.inf
    return Difference(group, name, absolute, relative, tolerance, peer.shape, largest)


def gradient_differences(
    group: str, ours: Mapping[str, np.ndarray], peer: Mapping[str, np.ndarray], tolerances: Tolerances
) -> list[Difference]:
    """Of every parameter and of the whole gradient; parameters that the peer doesn't train have none on our side."""
    found = [
        difference(group, name, ours[name], gradient, tolerances.gradients, by_norm=True)
        for name, gradient in peer.items()
    ]
    found += [
        difference(group, f"{name} (frozen)", array, np.zeros_like(array), tolerances.gradients)
        for name, array in ours.items()
        if name not in peer and not name.endswith(("running_mean", "running_var"))
    ]
    a, b = (np.concatenate([side[name].ravel() for name in peer]) for side in (ours, peer))
    return [*found, difference(group, "all together", a, b, tolerances.whole_gradient, by_norm=True)]


def pair_up(ours: Found, peer: Found) -> list[tuple[int | None, int | None]]:
    """Positions of the same detection on both sides, best first; None where one side lacks it.

    Pairs have one label and the boxes nearest to each other, so that two detections of nearly equal score may stand in
    either order.
    """
    left, pairs = list(range(len(peer.scores))), []
    for i in range(len(ours.scores)):
        same = [j for j in left if peer.labels[j] == ours.labels[i]]
        near = min(same, key=lambda j: _distance(ours.boxes[i], peer.boxes[j]), default=None)
        if near is not None and _distance(ours.boxes[i], peer.boxes[near]) > 0.1 * _side(peer.boxes[near]):
            near = None
        if near is not None:
            left.remove(near)
        pairs.append((i, near))
    return [*pairs, *((None, j) for j in left)]


def detection_differences(
    ours: Found, peer: Found, image: int, tolerance: float, *, floor: float, limit: int
) -> list[Difference]:
    """Number, scores and boxes of an image's detections.

    A detection that one side lacks counts, unless rounding may have left it out: its score is within the tolerance of
    the threshold `floor`, or of the last one on a side that is full (`limit` detections).
    """
    pairs = pair_up(ours, peer)
    both = [(i, j) for i, j in pairs if i is not None and j is not None]
    i, j = [i for i, _ in both], [j for _, j in both]

    def left_out(scores: np.ndarray, other: Found) -> float:
        edges = [floor, *(other.scores[-1:] if len(other.scores) == limit else ())]
        return float(sum(min(abs(score - edge) for edge in edges) > tolerance for score in scores))

    missing = left_out(ours.scores[[i for i, j in pairs if i is not None and j is None]], peer)
    missing += left_out(peer.scores[[j for i, j in pairs if j is not None and i is None]], ours)
    group, name = "detections", f"image {image}: only on one side"
    return [
        Difference(group, name, missing, np.inf if missing else 0.0, tolerance),
        difference(group, f"image {image}: scores", ours.scores[i], peer.scores[j], tolerance),
        difference(group, f"image {image}: boxes", ours.boxes[i], peer.boxes[j], tolerance),
    ]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def _side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))
