"""T-head on one canvas of all levels (`geometry.packing`): the same numbers from a fifth of the convolutions.

A compiler for TPUs spends most of its time on each differently shaped convolution and its two gradients, and the small
levels leave most of a matrix unit idle. `THead` has the parameters and the plain way; this is the other way through
them, equal to rounding.

Axes: B images · h, w a level's cells · H, W the canvas's · N all levels' cells in a row · F = channels of the tower ·
L = interactive convolutions · P = 5 levels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.geometry.packing import Packing, clear_gaps, pack, packing, unpack
from tood_jax.networks.alignment import HeadMaps, align_boxes
from tood_jax.networks.layers import pure, sigmoid_geometric_mean, stack_trees
from tood_jax.networks.packed_norm import packed_norm
from tood_jax.networks.reductions import joined_kernels, parted


def packed_maps(head: Any, levels: tuple[Array, ...]) -> HeadMaps:
    """What a bound `THead` says of (P3, …, P7), all cells in a row: scores [B, N, C], boxes [B, N, 4], …"""
    where = packing(tuple((x.shape[1], x.shape[2]) for x in levels))
    features = _tower(head, pack(levels, where), where)
    reduced = pack(_reduced(head, features, where), where)  # [B, H, W, 2·F + 2·hidden]
    cls, reg, hidden = parted(head, reduced)

    def normed(decomposition, x):
        return packed_norm(x, *_scale_and_bias(decomposition.norm), head.norm_groups, where)

    reg = normed(head.reg_decomposition, reg)
    logits = _in_a_row(head.cls_logits(normed(head.cls_decomposition, cls)).astype(jnp.float32), where)
    by_level = unpack(head.reg_sides(reg).astype(jnp.float32), where)
    scales = head.scales if head.level_scales else [1.0] * len(by_level)
    boxes = _join([head.coding.decode(one, scale) for one, scale in zip(by_level, scales, strict=True)])
    raw = _join([one * scale for one, scale in zip(by_level, scales, strict=True)])
    quality = _in_a_row(head.quality_logits(reg).astype(jnp.float32), where) if head.quality else None
    if hidden is None:
        return HeadMaps(jax.nn.sigmoid(logits), boxes, raw, quality)
    predicted = head.align.predict(*(clear_gaps(x, where) for x in hidden))
    alignment, offsets = (_in_a_row(x, where) for x in predicted)
    scores = sigmoid_geometric_mean(logits, alignment)
    return HeadMaps(scores, align_boxes(boxes, offsets, where.shapes), raw, quality)


def _tower(head: Any, x: Float[Array, "b hh ww f"], where: Packing) -> list[Array]:
    """The interactive features, layer by layer."""

    def layer(convolution: Callable, by_level: bool) -> Callable:
        def run(x, variables):
            kernel, (scale, bias) = variables
            if by_level:  # a deformable convolution would see the neighbouring levels
                y = pack(tuple(convolution(kernel, one) for one in unpack(x, where)), where)
            else:
                y = convolution(kernel, x)
            return packed_norm(y, scale, bias, head.norm_groups, where)

        return jax.checkpoint(run) if head.remat else run

    parts = [pure(convolution) for convolution in head.tower]
    variables = [(kernel, _scale_and_bias(norm)) for (_, kernel), norm in zip(parts, head.tower_norms, strict=True)]
    scanned = head.deformable_convs if head.scan else head.num_convs
    features = []
    for i in range(scanned):
        x = layer(parts[i][0], i < head.deformable_convs)(x, variables[i])
        features.append(x)
    if scanned < head.num_convs:
        run = layer(parts[scanned][0], False)
        _, rest = lax.scan(lambda x, v: (run(x, v),) * 2, x, stack_trees(variables[scanned:]))
        features += list(rest)
    return features


def _reduced(head: Any, features: list[Array], where: Packing) -> tuple[Array, ...]:
    """`reductions`' product, a level: its kernels differ from image to image and level to level."""
    by_level = [jnp.concatenate(one, axis=-1) for one in zip(*(unpack(x, where) for x in features), strict=True)]
    pooled = jnp.stack([x.mean(axis=(1, 2)) for x in by_level], axis=1)[:, :, None]  # [B, P, 1, L·F]
    kernel = joined_kernels(head, pooled)
    return tuple(jnp.einsum("bhwi,bio->bhwo", x, kernel[:, i]) for i, x in enumerate(by_level))


def _scale_and_bias(norm: Any) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    parameters = norm.variables["params"]["norm"]
    return parameters["scale"], parameters["bias"]


def _in_a_row(canvas: Float[Array, "b hh ww f"], where: Packing) -> Float[Array, "b n f"]:
    return _join(unpack(canvas, where))


def _join(levels) -> Float[Array, "b n f"]:
    return jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels], axis=1)
