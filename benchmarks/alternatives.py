"""Formulations that the product has, beside others of the same result: what was kept, what was dropped, and why.

    python -m benchmarks.alternatives                      # times, here
    python -m benchmarks.alternatives --topology v5e:2x2   # the TPU compiler's word (needs jax[tpu]; no TPU)

All ways of a piece of work must give the same numbers; if they don't, the command ends with status 1. On a TPU,
elements of gathers and scatters, sorts and the rounds of loops follow one another; "HBM MB" is our own count of the
compiled text, "M cycles" the compiler's estimate (tood_jax/ahead_of_time/traffic.py).

Axes: B images · N cells · G objects of a chunk · S candidates · K detections.
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

from benchmarks.common import (
    Options,
    Report,
    Row,
    absent_chip,
    begin_report,
    compile_program,
    compiled_work,
    finish_report,
    interleaved,
    ms,
    print_table,
    read_options,
)
from benchmarks.nms import Args as Candidates
from benchmarks.nms import random_candidates
from tood_jax.compiling import OURS
from tood_jax.geometry import sampling, sampling_products
from tood_jax.geometry.boxes import pairwise_iou
from tood_jax.geometry.pyramid import pyramid
from tood_jax.networks.convolution import by_depth
from tood_jax.networks.kernel_blocks import LANES, widened
from tood_jax.postprocess import nms

NAME = "alternatives"
GROUPS = 64  # of ResNeXt-101-64x4d
OBJECTS, TOPK = 64, 13  # G of the product's chunk, m of the paper
CANDIDATES, DETECTIONS, TILE, IOU = 5000, 100, 128, 0.6
STEM = {"window_strides": (2, 2), "padding": ((3, 3), (3, 3)), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
ONE_BY_ONE = ("gather", "scatter", "sort", "while")  # what a TPU doesn't do in parallel


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    batch: int = 2
    """B."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    topology: str = ""
    """A TPU topology to compile for instead of running here, v5e:2x2 for instance."""


Case = tuple[dict[str, Callable[..., Any]], tuple[np.ndarray, ...]]  # ways of the same work, and what it works on


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure or compile, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time other formulations of some pieces.")
    report = begin_report(NAME, argv, args)
    measure = functools.partial(compiled, sharding=absent_chip(args.topology)) if args.topology else timed
    rows = []
    for work, (ways, arguments) in cases(args).items():
        found = measure(ways, arguments, args)
        rows += [{"work": work, "way": way, **what} for way, what in found.items()]
    header = (
        ["work", "way", "HBM MB", "M cycles", *ONE_BY_ONE, "compile, s"] if args.topology else ["work", "way", "ms"]
    )
    print_table(f"{args.batch} × {args.height} × {args.width}", header, map(line, rows))
    return finish_report(report, args, results=rows)


def line(row: Row) -> list[Any]:
    """A row of the table."""
    if "median_seconds" in row:
        return [row["work"], row["way"], ms(row)]
    sizes = row["hbm_bytes"] / 1e6, row["cycles"] / 1e6
    return [row["work"], row["way"], *sizes, *map(row.get, ONE_BY_ONE), row["compile_seconds"]]


def timed(ways: dict[str, Callable[..., Any]], arguments: tuple[np.ndarray, ...], args: Args) -> dict[str, Row]:
    """Interleaved times of ways that agree."""
    placed = jax.device_put(arguments)
    runs = {way: functools.partial(compile_program(jax.jit(one), *placed).run, *placed) for way, one in ways.items()}
    first, *others = ((way, jax.device_get(run())) for way, run in runs.items())
    for way, found in others:
        for one, expected in zip(jax.tree.leaves(found), jax.tree.leaves(first[1]), strict=True):
            if not np.allclose(one, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()):
                raise SystemExit(f"{way} and {first[0]} differ.")
    return interleaved(runs, args.repeats)


def compiled(
    ways: dict[str, Callable[..., Any]], arguments: tuple[np.ndarray, ...], args: Args, sharding: SingleDeviceSharding
) -> dict[str, Row]:
    """What the compiler makes of each way."""
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding) for one in arguments]

    def look(function: Callable[..., Any]) -> Row:
        program = compile_program(jax.jit(function, compiler_options=OURS["tpu"]), *shapes)
        text = program.run.as_text()  # type: ignore[attr-defined]
        return compiled_work(program) | {kind: text.count(f" {kind}(") for kind in ONE_BY_ONE}

    return {way: look(function) for way, function in ways.items()}


def cases(args: Args) -> dict[str, Case]:
    """The pieces of work, by name."""
    rng = np.random.default_rng(args.seed)
    canvas = pyramid(args.height, args.width)
    shapes, cells = canvas.shapes, len(canvas.points)
    image = rng.standard_normal((args.batch, args.height, args.width, 3), np.float32)
    kernel = rng.standard_normal((7, 7, 3, 64), np.float32)
    grouped_map = rng.standard_normal((args.batch, *shapes[0], 512), np.float32)  # c3 of X101-64x4d
    grouped_kernel = rng.standard_normal((3, 3, 512 // GROUPS, 512), np.float32)
    sides = rng.uniform(0, 8, (args.batch, cells, 4)).astype(np.float32)
    offsets = rng.normal(0, 1.5, (args.batch, cells, 4, 2)).astype(np.float32)
    metric = np.maximum(rng.uniform(-9, 1, (args.batch * OBJECTS, cells)), 0).astype(np.float32)
    boxes, scores, labels = random_candidates(Candidates(seed=args.seed), CANDIDATES)
    gather, products = (
        functools.partial(function, shapes=shapes) for function in (sampling.sample_by_gather, sampling_products.sample)
    )
    return {
        "stem": (
            {
                "7×7, stride 2": functools.partial(lax.conv_general_dilated, **STEM),
                "space to depth by slices": by_depth,
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
        "sampling": ({"gather": gather, "products": products}, (sides, offsets)),
        "its gradient": (
            {
                "gather": lambda x, o, c: jax.vjp(gather, x, o)[1](c),
                "products": lambda x, o, c: jax.vjp(products, x, o)[1](c),
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
    """A convolution of GROUPS groups in blocks of so many input channels, and the gradient of its map."""
    kernel, groups = widened(kernel, GROUPS, width)
    layout = ("NHWC", "HWIO", "NHWC")

    def convolve(x):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout, feature_group_count=groups
        )

    out, pull_back = jax.vjp(convolve, x)
    return out, *pull_back(cotangent)


def stem_by_reshapes(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The stem on 2×2 pixels as 12 channels: a 4×4 convolution of stride 1."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = x.reshape(batch, height // 2 + 3, 2, width // 2 + 3, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(*x.shape[:3], 4 * channels)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def topk_by_level(metric: jax.Array, *, level_slices: tuple[slice, ...]) -> tuple[jax.Array, jax.Array]:
    """The best of each level, then the best of these."""
    parts = []
    for level in level_slices:
        values, places = lax.top_k(metric[:, level], min(TOPK, level.stop - level.start))
        parts.append((values, places + level.start))
    values, places = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    values, chosen = lax.top_k(values, TOPK)
    return values, jnp.take_along_axis(places, chosen, axis=1)


def topk_by_rounds(metric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best, thirteen times."""

    def take(left, _):
        best = left.argmax(axis=1)
        taken = jnp.arange(left.shape[1]) == best[:, None]
        return jnp.where(taken, -jnp.inf, left), (left.max(axis=1), best)

    values, places = lax.scan(take, metric, length=TOPK)[1]
    return values.T, places.T


def nms_by_tiles(boxes: jax.Array, scores: jax.Array, labels: jax.Array) -> jax.Array:
    """All boxes by score, tile after tile: what kept boxes before it leave, then what it leaves of itself."""
    order = jnp.argsort(-scores)
    padding = -len(order) % TILE
    places = jnp.pad(order, (0, padding), constant_values=-1)
    boxes, labels, alive = boxes[places], labels[places], (scores[places] > 0) & (places >= 0)

    def look(index, kept):
        start = index * TILE
        tile, tile_labels = (lax.dynamic_slice_in_dim(one, start, TILE) for one in (boxes, labels))
        over = (pairwise_iou(tile, boxes) > IOU) & (tile_labels[:, None] == labels)
        before = jnp.arange(len(places)) < start
        free = lax.dynamic_slice_in_dim(alive, start, TILE) & ~(over & kept & before).any(axis=1)
        within = lax.dynamic_slice_in_dim(over, start, TILE, axis=1) & (jnp.arange(TILE)[:, None] > jnp.arange(TILE))

        def settle(state):
            found, _ = state
            return free & ~(within & found).any(axis=1), found

        found, _ = lax.while_loop(lambda state: (state[0] != state[1]).any(), settle, settle((free, ~free)))
        return lax.dynamic_update_slice_in_dim(kept, found, start, axis=0)

    kept = lax.fori_loop(0, len(places) // TILE, look, jnp.zeros(len(places), bool))
    first = jnp.nonzero(kept, size=DETECTIONS, fill_value=len(places))[0]
    return jnp.append(places, -1)[first].astype(jnp.int32)


if __name__ == "__main__":
    main()
