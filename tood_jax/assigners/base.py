"""What assigners share: chunks of objects, the centre prior, and conflicts of objects over a location.

Axes: N locations · M padded objects · K candidates per object · G objects per chunk. Boxes are xyxy in pixels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from tood_jax.geometry.boxes import aligned_iou, inside_distance
from tood_jax.types import Assignment

# A candidate's point must lie in the object's box by more than this many pixels (published code).
MIN_INSIDE_DISTANCE = 0.01
BACKGROUND, IGNORED = -1, -2  # gt_index of locations without an object; ignored ones take no part in the loss


class Candidates(NamedTuple):
    """The candidate locations of each object."""

    location: Int[Array, "m k"]  # index in N
    positive: Bool[Array, "m k"]  # whether it may become a positive of the object
    iou: Float[Array, "m k"]  # 0–1, with the object
    metric: Float[Array, "m k"]  # alignment metric, or 1


def map_in_chunks(select: Callable[..., Candidates], objects: tuple, chunk: int) -> Candidates:
    """Return `select(*objects)`, computed for `chunk` objects at a time, so that memory is G·N and not M·N.

    Args:
        select: maps arrays with objects in front to Candidates.
        objects: arrays with M in front.
        chunk: G, ≥ 1.
    """
    count = objects[0].shape[0]
    if count <= chunk:
        return select(*objects)
    candidates = lax.map(lambda part: select(*part), _split(objects, chunk))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], candidates)


def fold_in_chunks(fold: Callable[..., Any], start: Any, objects: tuple, chunk: int) -> Any:
    """Return `fold(start, *objects)`, computed for `chunk` objects at a time, in their order.

    Args:
        fold: maps the state after the earlier objects (arrays of one shape throughout) and arrays with G objects in
            front to the next state; the last chunk is filled up with zeros (False).
        objects: arrays with M in front; with M = 0, `start` is returned.
        chunk: G, ≥ 1.
    """
    count = objects[0].shape[0]
    if count <= chunk:
        return fold(start, *objects) if count else start
    return lax.scan(lambda state, part: (fold(state, *part), None), start, _split(objects, chunk))[0]


def _split(objects: tuple, chunk: int) -> tuple:
    """Return each array [M, …] as [rounds, chunk, …], padded with zeros."""
    count = objects[0].shape[0]
    rounds = -(-count // chunk)

    def split(array):
        padding = [(0, rounds * chunk - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(rounds, chunk, *array.shape[1:])

    return tuple(split(array) for array in objects)


def near_center(
    points: Float[Array, "n 2"], strides: Float[Array, " n"], gt_boxes: Float[Array, "g 4"], radius: float
) -> Bool[Array, "g n"]:
    """Return whether a point is in the square of ±radius·stride around a box's centre (its border excluded)."""
    centers = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2  # [G, 1, 2]
    reach = radius * strides[:, None]
    return inside_distance(points, jnp.concatenate([centers - reach, centers + reach], axis=-1)) > 0


def full_assignment(
    gt_index: Int[Array, " n"], boxes: Float[Array, "n 4"] | None, gt_boxes: Float[Array, "m 4"]
) -> Assignment:
    """Return the assignment of positives with metric and soft label 1, and the IoU of their own box with their object.

    Args:
        boxes: one per location; None where the assigner uses points only: then iou is 0 everywhere.
    """
    positive = gt_index >= 0
    ones = positive.astype(gt_boxes.dtype)
    iou = jnp.zeros_like(ones)
    if boxes is not None and len(gt_boxes):
        iou = jnp.where(positive, aligned_iou(boxes, gt_boxes[jnp.maximum(gt_index, 0)]), 0)
    return jax.tree.map(lax.stop_gradient, Assignment(gt_index.astype(jnp.int32), ones, iou, ones))


def resolve_conflicts(candidates: Candidates, num_locations: int) -> tuple[Int[Array, " n"], Bool[Array, "m k"]]:
    """Give each location to the object of highest IoU (the first of equals) among those it is a candidate of.

    Returns:
        gt_index [N] (−1 = background), and which candidates [M, K] were kept.
    """
    count, per_object = candidates.location.shape
    if count == 0:
        return jnp.full(num_locations, BACKGROUND, jnp.int32), jnp.zeros((0, per_object), bool)
    location = jnp.where(candidates.positive, candidates.location, num_locations)  # out of bounds: dropped
    best = jnp.full(num_locations, -1.0).at[location].max(candidates.iou, mode="drop")  # -1: below every IoU
    wins = candidates.positive & (candidates.iou == best[candidates.location])
    objects = lax.broadcasted_iota(jnp.int32, (count, per_object), 0)
    owner = jnp.full(num_locations, count, jnp.int32)
    owner = owner.at[jnp.where(wins, candidates.location, num_locations)].min(objects, mode="drop")
    kept = wins & (owner[candidates.location] == objects)
    return jnp.where(owner == count, BACKGROUND, owner), kept


def scatter(values: Float[Array, "m k"], candidates: Candidates, kept: Bool[Array, "m k"], num_locations: int):
    """Return [N], the value of each kept candidate at its location, 0 elsewhere."""
    location = jnp.where(kept, candidates.location, num_locations)
    return jnp.zeros(num_locations, values.dtype).at[location].set(values, mode="drop")
