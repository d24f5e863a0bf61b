"""What both assigners share: chunks of objects, and settling cells that several objects claim.

Axes: N cells · M padded objects · K candidates an object · G objects a chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

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
    rounds = -(-count // chunk)

    def split(array):
        padding = [(0, rounds * chunk - count)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(rounds, chunk, *array.shape[1:])

    claims = lax.map(lambda part: claim(*part), tuple(split(array) for array in objects))
    return jax.tree.map(lambda array: array.reshape(rounds * chunk, *array.shape[2:])[:count], claims)


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
