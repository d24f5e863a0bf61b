"""Compare the formulations that tood_jax uses with others of the same result.

    python -m benchmarks.cases.alternative_formulations                     # measure times here
    python -m benchmarks.cases.alternative_formulations --topology v5e:2x2  # compile for a TPU (needs jax[tpu]; no TPU)

All formulations of a piece of work must give the same numbers; if they do not, the command ends with status 1. On a
TPU, elements of gathers and scatters, sorts and loop iterations run one after the other; "HBM MB" is counted in the
compiled text, "M cycles" is the compiler's estimate (tood_jax/tools/compile_for/traffic.py).

Axes: B images · N locations · G objects of a chunk · S candidates · K detections.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from benchmarks.harness.inputs import random_nms_candidates
from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import chip_sharding, compile_call, compile_program, compiler_estimates, program_text
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table
from benchmarks.harness.timing import time_interleaved
from tood_jax.distributed.compiler_options import DEFAULT_OPTIONS
from tood_jax.geometry.boxes import pairwise_iou
from tood_jax.geometry.locations import make_pyramid
from tood_jax.ops.bilinear import gather, matmul
from tood_jax.ops.conv.block_diagonal import LANES, block_diagonal
from tood_jax.ops.conv.space_to_depth import conv2d_space_to_depth
from tood_jax.postprocess import nms

NAME = "alternative_formulations"
GROUPS = 64  # of ResNeXt-101-64x4d
OBJECTS, TOPK = 64, 13  # G of a chunk, m of the paper
CANDIDATES, DETECTIONS, TILE, IOU = 5000, 100, 128, 0.6
SERIAL_OPERATIONS = ("gather", "scatter", "sort", "while")  # a TPU does not run their elements in parallel


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    batch: int = 2
    """Images B."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    topology: str = ""
    """A TPU topology to compile for instead of running here, v5e:2x2 for instance."""


Work = tuple[dict[str, Callable[..., Any]], tuple[np.ndarray, ...]]  # formulations by name, and their arguments


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure or compile, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compare formulations of the same work.")
    report = begin_report(NAME, argv, args)
    sharding = chip_sharding(args.topology) if args.topology else None
    rows = []
    for work, (formulations, arguments) in works(args).items():
        found = (
            compile_all(formulations, arguments, sharding)
            if sharding
            else time_all(formulations, arguments, args.repeats)
        )
        rows += [{"work": work, "way": name, **figures} for name, figures in found.items()]
    header = (
        ["work", "way", "HBM MB", "M cycles", *SERIAL_OPERATIONS, "compile, s"]
        if args.topology
        else ["work", "way", "ms"]
    )
    print_table(f"{args.batch} × {args.height} × {args.width}", header, [table_line(row) for row in rows])
    return finish_report(report, args, results=rows)


def table_line(row: Row) -> list[Any]:
    """Return a line of the table."""
    if "median_seconds" in row:
        return [row["work"], row["way"], format_milliseconds(row)]
    sizes = row["hbm_bytes"] / 1e6, row["cycles"] / 1e6
    return [row["work"], row["way"], *sizes, *map(row.get, SERIAL_OPERATIONS), row["compile_seconds"]]


def time_all(
    formulations: dict[str, Callable[..., Any]], arguments: tuple[np.ndarray, ...], repeats: int
) -> dict[str, Row]:
    """Time formulations, after checking that their results are equal."""
    on_device = jax.device_put(arguments)
    runs = {name: compile_call(jax.jit(function), *on_device)[0] for name, function in formulations.items()}
    (first_name, first), *others = ((name, jax.device_get(run())) for name, run in runs.items())
    for name, result in others:
        for array, expected in zip(jax.tree.leaves(result), jax.tree.leaves(first), strict=True):
            if not np.allclose(array, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
                raise SystemExit(f"{name} and {first_name} differ.")
    return time_interleaved(runs, repeats)


def compile_all(
    formulations: dict[str, Callable[..., Any]], arguments: tuple[np.ndarray, ...], sharding: SingleDeviceSharding
) -> dict[str, Row]:
    """Compile formulations for a chip, and return what its compiler reports."""
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for array in arguments]

    def estimates(function: Callable[..., Any]) -> Row:
        program = compile_program(jax.jit(function, compiler_options=DEFAULT_OPTIONS["tpu"]), *shapes)
        text = program_text(program)
        return compiler_estimates(program) | {kind: text.count(f" {kind}(") for kind in SERIAL_OPERATIONS}

    return {name: estimates(function) for name, function in formulations.items()}


def works(args: Args) -> dict[str, Work]:
    """Return the pieces of work by name."""
    rng = np.random.default_rng(args.seed)
    canvas = make_pyramid(args.height, args.width)
    shapes, locations = canvas.shapes, len(canvas.points)
    image = rng.standard_normal((args.batch, args.height, args.width, 3), np.float32)
    kernel = rng.standard_normal((7, 7, 3, 64), np.float32)
    grouped_map = rng.standard_normal((args.batch, *shapes[0], 512), np.float32)  # c3 of X101-64x4d
    grouped_kernel = rng.standard_normal((3, 3, 512 // GROUPS, 512), np.float32)
    sides = rng.uniform(0, 8, (args.batch, locations, 4)).astype(np.float32)
    offsets = rng.normal(0, 1.5, (args.batch, locations, 4, 2)).astype(np.float32)
    metric = np.maximum(rng.uniform(-9, 1, (args.batch * OBJECTS, locations)), 0).astype(np.float32)
    boxes, scores, labels = random_nms_candidates(CANDIDATES, seed=args.seed)
    by_gather, by_matmul = (functools.partial(module.sample, shapes=shapes) for module in (gather, matmul))
    return {
        "stem": (
            {
                "7×7, stride 2": functools.partial(
                    lax.conv_general_dilated,
                    window_strides=(2, 2),
                    padding=((3, 3), (3, 3)),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                ),
                "space to depth by slices": conv2d_space_to_depth,
                "space to depth by reshapes": stem_by_reshapes,
            },
            (image, kernel),
        ),
        "grouped 3×3 and its map's gradient": (
            {
                "64 groups of 8 channels": functools.partial(grouped, width=8),
                **{f"blocks of {width}": functools.partial(grouped, width=width) for width in (64, LANES, 256)},
            },
            (grouped_map, grouped_kernel, grouped_map[::-1].copy()),
        ),
        "sampling": ({"gather": by_gather, "products": by_matmul}, (sides, offsets)),
        "its gradient": (
            {
                "gather": lambda x, o, c: jax.vjp(by_gather, x, o)[1](c),
                "products": lambda x, o, c: jax.vjp(by_matmul, x, o)[1](c),
            },
            (sides, offsets, sides[::-1].copy()),
        ),
        "top 13 of an object": (
            {
                "all cells": lambda metric: lax.top_k(metric, TOPK),
                "level by level": functools.partial(topk_by_level, level_slices=canvas.level_slices),
                "rounds of argmax": topk_by_rounds,
            },
            (metric,),
        ),
        "NMS": (
            {
                "rounds": functools.partial(nms, iou_threshold=IOU, max_detections=DETECTIONS),
                "sorted tiles": nms_by_tiles,
            },
            (boxes, scores, labels),
        ),
    }


def grouped(x: jax.Array, kernel: jax.Array, cotangent: jax.Array, *, width: int) -> tuple[jax.Array, jax.Array]:
    """Return a convolution of GROUPS groups in blocks of `width` input channels, and the gradient of its map."""
    kernel, groups = block_diagonal(kernel, GROUPS, width)
    layout = ("NHWC", "HWIO", "NHWC")

    def convolve(x):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout, feature_group_count=groups
        )

    out, pull_back = jax.vjp(convolve, x)
    return out, *pull_back(cotangent)


def stem_by_reshapes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the stem, computed on 2×2 pixels as 12 channels by a 4×4 convolution of stride 1."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = x.reshape(batch, height // 2 + 3, 2, width // 2 + 3, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(*x.shape[:3], 4 * channels)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def topk_by_level(metric: jax.Array, *, level_slices: tuple[slice, ...]) -> tuple[jax.Array, jax.Array]:
    """Take the best of each level, then the best of these."""
    parts = []
    for level in level_slices:
        values, indices = lax.top_k(metric[:, level], min(TOPK, level.stop - level.start))
        parts.append((values, indices + level.start))
    values, indices = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    values, chosen = lax.top_k(values, TOPK)
    return values, jnp.take_along_axis(indices, chosen, axis=1)


def topk_by_rounds(metric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Take the best, thirteen times."""

    def take(left, _):
        best = left.argmax(axis=1)
        taken = jnp.arange(left.shape[1]) == best[:, None]
        return jnp.where(taken, -jnp.inf, left), (left.max(axis=1), best)

    values, indices = lax.scan(take, metric, length=TOPK)[1]
    return values.T, indices.T


def nms_by_tiles(boxes: jax.Array, scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Keep boxes by score, tile after tile: drop what kept boxes of earlier tiles overlap, then within the tile."""
    order = jnp.argsort(-scores)
    padding = -len(order) % TILE
    indices = jnp.pad(order, (0, padding), constant_values=-1)
    boxes, labels, valid = boxes[indices], labels[indices], (scores[indices] > 0) & (indices >= 0)

    def add_tile(tile_index, kept):
        start = tile_index * TILE
        tile, tile_labels = (lax.dynamic_slice_in_dim(array, start, TILE) for array in (boxes, labels))
        overlaps = (pairwise_iou(tile, boxes) > IOU) & (tile_labels[:, None] == labels)
        before = jnp.arange(len(indices)) < start
        free = lax.dynamic_slice_in_dim(valid, start, TILE) & ~(overlaps & kept & before).any(axis=1)
        within = lax.dynamic_slice_in_dim(overlaps, start, TILE, axis=1)
        within &= jnp.arange(TILE)[:, None] > jnp.arange(TILE)

        def drop_overlapped(state):
            found, _ = state
            return free & ~(within & found).any(axis=1), found

        def has_changed(state):
            return (state[0] != state[1]).any()

        found, _ = lax.while_loop(has_changed, drop_overlapped, drop_overlapped((free, ~free)))
        return lax.dynamic_update_slice_in_dim(kept, found, start, axis=0)

    kept = lax.fori_loop(0, len(indices) // TILE, add_tile, jnp.zeros(len(indices), bool))
    first = jnp.nonzero(kept, size=DETECTIONS, fill_value=len(indices))[0]
    return jnp.append(indices, -1)[first].astype(jnp.int32)


if __name__ == "__main__":
    main()
