"""What assigners share: chunks of objects, the centre prior, and settling cells that several objects claim.

Axes: N cells · M padded objects · K candidates an object · G objects a chunk. Boxes are xyxy in pixels.
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


class Claims(NamedTuple):
    """The cells that each object would like to have."""

    cell: Int[Array, "m k"]  # position of the cell
    positive: Bool[Array, "m k"]  # does the object claim it?
    iou: Float[Array, "m k"]  # 0–1, with the object
    metric: Float[Array, "m k"]  # alignment metric, or 1


def claim_in_chunks(claim: Callable[..., Claims], objects: tuple, chunk: int) -> Claims:
    """`claim(*objects)` worked off `chunk` objects at a time, so that memory is G·N and not M·N.

    Args:
        claim: maps arrays with objects in front to Claims.
        objects: arrays with M in front.
        chunk: objects a round, ≥ 1.
    """
    count = objects[0].shape[0]
    if count <= chunk:
        return claim(*objects)
    claims = lax.map(lambda part: claim(*part), _split(objects, chunk))
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], claims)


def fold_in_chunks(fold: Callable[..., Any], start: Any, objects: tuple, chunk: int) -> Any:
    """`start = fold(start, *objects)` worked off `chunk` objects at a time, in their order.

    Args:
        fold: takes what the earlier objects left (arrays of one shape throughout) and arrays with G objects in front;
            the last chunk is filled up with zeros (False).
        objects: arrays with M in front; with M = 0, `start` comes back.
        chunk: objects a round, ≥ 1.
    """
    count = objects[0].shape[0]
    if count <= chunk:
        return fold(start, *objects) if count else start
    return lax.scan(lambda state, part: (fold(state, *part), None), start, _split(objects, chunk))[0]


def _split(objects: tuple, chunk: int) -> tuple:
    """Each array [M, …] as [rounds, chunk, …], padded with zeros."""
    count = objects[0].shape[0]
    rounds = -(-count // chunk)

    def split(array):
        padding = [(0, rounds * chunk - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(rounds, chunk, *array.shape[1:])

    return tuple(split(array) for array in objects)


def near_center(
    points: Float[Array, "n 2"], strides: Float[Array, " n"], gt_boxes: Float[Array, "g 4"], radius: float
) -> Bool[Array, "g n"]:
    """Does a point lie in the square of ±radius·stride around a box's centre (its border excluded)?"""
    centers = (gt_boxes[:, None, :2] + gt_boxes[:, None, 2:]) / 2  # [G, 1, 2]
    reach = radius * strides[:, None]
    return inside_distance(points, jnp.concatenate([centers - reach, centers + reach], axis=-1)) > 0


def full_assignment(
    gt_index: Int[Array, " n"], boxes: Float[Array, "n 4"] | None, gt_boxes: Float[Array, "m 4"]
) -> Assignment:
    """Positives that learn their object in full: metric and soft label 1, and the IoU of their own box with it.

    Args:
        boxes: one a cell; None where the assignment knows only points: then iou is 0 everywhere.
    """
    positive = gt_index >= 0
    ones = positive.astype(jnp.float32)
    iou = jnp.zeros_like(ones)
    if boxes is not None and len(gt_boxes):
        iou = jnp.where(positive, aligned_iou(boxes, gt_boxes[jnp.maximum(gt_index, 0)]), 0)
    return jax.tree.map(lax.stop_gradient, Assignment(gt_index.astype(jnp.int32), ones, iou, ones))


def settle(claims: Claims, num_cells: int) -> tuple[Int[Array, " n"], Bool[Array, "m k"]]:
    """Give each claimed cell to the claimant with the highest IoU; the first object wins a tie.

    Returns:
        gt_index [N] (−1 = background), and which claims [M, K] were granted.
    """
    count, candidates = claims.cell.shape
    if count == 0:
        return jnp.full(num_cells, -1, jnp.int32), jnp.zeros((0, candidates), bool)
    cell = jnp.where(claims.positive, claims.cell, num_cells)  # out of bounds: dropped
    best = jnp.full(num_cells, -1.0).at[cell].max(claims.iou, mode="drop")
    wins = claims.positive & (claims.iou == best[claims.cell])
    objects = lax.broadcasted_iota(jnp.int32, (count, candidates), 0)
    owner = jnp.full(num_cells, count, jnp.int32)
    owner = owner.at[jnp.where(wins, claims.cell, num_cells)].min(objects, mode="drop")
    granted = wins & (owner[claims.cell] == objects)
    return jnp.where(owner == count, -1, owner), granted


def spread(values: Float[Array, "m k"], claims: Claims, granted: Bool[Array, "m k"], num_cells: int):
    """[N]: each granted claim's value at its cell, 0 elsewhere."""
    cell = jnp.where(granted, claims.cell, num_cells)
    return jnp.zeros(num_cells, values.dtype).at[cell].set(values, mode="drop")
