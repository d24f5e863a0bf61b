"""Deformable convolution: its formulations against each other and against the plain 3×3 convolution of the same size.

    python -m benchmarks.deformable --batch 2 --height 50 --width 84 --channels 256
    python -m benchmarks.deformable --topology v5e:2x2 --dtype bfloat16     # with jax[tpu] installed; needs no TPU

The plain convolution is the floor: it does the same products on the same map, without looking where to. With
`--topology` the programs are compiled for that TPU and not run: the report holds the compiler's figures, and no times.

XLA counts the body of a loop once. "gather" loops over the nine taps and "products" over images and output rows, so
their FLOP, bytes and estimated times are the count times the rounds; an inner loop (a scatter's, or the further windows
of rows that "products" looks at where offsets reach far) still counts once: lower bounds of what runs, to be read
beside the times. "HBM MB", for TPUs, is our own count of the compiled text (tood_jax/ahead_of_time/traffic.py).

"Gradient" is the backward pass alone, for all four arguments. Axes: as in tood_jax/networks/deformable.py.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.common import (
    Options,
    Program,
    Report,
    Row,
    absent_chip,
    begin_report,
    compile_program,
    finish_report,
    interleaved,
    mebi,
    ms,
    print_table,
    read_options,
)
from tood_jax.ahead_of_time.traffic import hbm_bytes
from tood_jax.networks.deformable import TAPS, Formulation, deformable_conv

NAME = "deformable"
PLAIN = "plain convolution"
PASSES = ("forward", "gradient")


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark; the defaults are C4 of an 800 × 1344 image."""

    batch: int = 1
    """B."""
    height: int = 50
    """H, cells of the input."""
    width: int = 84
    """W, cells of the input."""
    channels: int = 256
    """C, and O too."""
    deformable_groups: int = 1
    """G."""
    groups: int = 1
    """Of the kernel."""
    stride: int = 1
    """Of the output in the input."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of map, kernel and output; offsets and mask are float32."""
    spread: float = 1.5
    """Standard deviation of the offsets, cells."""
    formulations: tuple[Formulation, ...] = get_args(Formulation)
    """Which to compare."""
    topology: str = ""
    """A TPU topology to compile for instead of running here, v5e:2x2 for instance."""


Shapes = dict[str, tuple[tuple[int, ...], Any]]


def shapes(args: Args) -> Shapes:
    """Shape and dtype of the arguments, and of the output's cotangent, in the order of `deformable_conv`."""
    dtype = jnp.dtype(args.dtype)
    cells = (args.batch, -(-args.height // args.stride), -(-args.width // args.stride))
    return {
        "x": ((args.batch, args.height, args.width, args.channels), dtype),
        "offsets": ((*cells, args.deformable_groups, TAPS, 2), jnp.float32),
        "mask": ((*cells, args.deformable_groups, TAPS), jnp.float32),
        "kernel": ((3, 3, args.channels // args.groups, args.channels), dtype),
        "cotangent": ((*cells, args.channels), dtype),
    }


def least(args: Args, name: str, way: str) -> Row:
    """Bytes that must be read and written once, and multiply-adds that must be done, whatever the formulation.

    Forward: T·P·C·O / groups for the product, and 4·T·P·C for four corners a sample. The gradient: the product twice,
    and 4·T·P·C each for the columns (seen again, not kept), the corners' share in the cotangent (for offsets and
    mask) and the map's gradient.
    """
    sizes = {key: math.prod(shape) * jnp.dtype(dtype).itemsize for key, (shape, dtype) in shapes(args).items()}
    cells, depth = math.prod(shapes(args)["cotangent"][0][:3]), args.channels // args.groups
    inputs = ["x", "kernel"] if name == PLAIN else ["x", "offsets", "mask", "kernel"]
    read = sum(sizes[key] for key in inputs)
    product, corners = TAPS * cells * depth * args.channels, 4 * TAPS * cells * args.channels
    if name == PLAIN:
        corners = 0
    if way == "forward":
        return {"least_bytes": read + sizes["cotangent"], "multiply_adds": product + corners}
    return {"least_bytes": 2 * read + sizes["cotangent"], "multiply_adds": 2 * product + 3 * corners}


def functions(args: Args) -> dict[str, Callable[..., jax.Array]]:
    """The cases' forward passes, of (x, offsets, mask, kernel)."""

    def plain(x, offsets, mask, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (args.stride, args.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=args.groups,
        )

    run = functools.partial(deformable_conv, stride=args.stride, groups=args.groups)
    return {PLAIN: plain} | {name: functools.partial(run, formulation=name) for name in args.formulations}


def passes(function: Callable[..., jax.Array], *, plain: bool) -> dict[str, Callable]:
    """Forward and gradient, of (x, offsets, mask, kernel, cotangent)."""

    def gradient(x, offsets, mask, kernel, cotangent):
        if plain:
            return jax.vjp(lambda x, kernel: function(x, offsets, mask, kernel), x, kernel)[1](cotangent)
        return jax.vjp(function, x, offsets, mask, kernel)[1](cotangent)

    return {"forward": lambda *arrays: function(*arrays[:4]), "gradient": gradient}


def random_arrays(args: Args) -> tuple[jax.Array, ...]:
    """Normal everywhere, offsets with their spread, mask 0–1."""
    keys = jax.random.split(jax.random.key(args.seed), 5)
    arrays = {
        key: jax.random.normal(seed, shape, dtype)
        for seed, (key, (shape, dtype)) in zip(keys, shapes(args).items(), strict=True)
    }
    arrays["offsets"] *= args.spread
    arrays["mask"] = jax.nn.sigmoid(arrays["mask"])
    arrays["kernel"] *= math.prod(arrays["kernel"].shape[:3]) ** -0.5
    return tuple(arrays.values())


def abstract_arrays(args: Args) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The same arrays on the first chip of a TPU that isn't there."""
    there = absent_chip(args.topology)
    return tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=there) for shape, dtype in shapes(args).values())


def rounds_of(name: str, args: Args) -> int:
    """Of the outer loops, whose body XLA counts once."""
    rows = args.batch * shapes(args)["cotangent"][0][1]
    return {"gather": TAPS, "products": rows}.get(name, 1)


def compilers_figures(program: Program, rounds: int) -> Row:
    """XLA's counts, times the rounds, and its own estimate of the time where it makes one (TPU).

    Operations that it can't estimate count −1 s in `optimal_seconds`; they are told apart in `unestimated`.
    """
    about = program.about
    row = {"rounds": rounds, **{f"xla_{key}": _times(about[key], rounds) for key in ("flops", "bytes_accessed")}}
    seconds = (program.run.cost_analysis() or {}).get("optimal_seconds")
    if seconds is not None:
        unknown = max(0, -math.floor(seconds))
        row |= {"estimated_seconds": (seconds + unknown) * rounds, "unestimated": unknown}
    return {**row, "program": about}


def _times(count: float | None, rounds: int) -> float | None:
    return None if count is None else count * rounds


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Formulations of the deformable convolution against the plain one.")
    report = begin_report(NAME, argv, args)
    arrays = abstract_arrays(args) if args.topology else random_arrays(args)
    rows, runs = [], {}
    for name, function in functions(args).items():
        for way, run in passes(function, plain=name == PLAIN).items():
            program = compile_program(jax.jit(run), *arrays)
            figures = compilers_figures(program, rounds_of(name, args))
            if args.topology:
                figures["hbm_bytes"] = hbm_bytes(program.run.as_text())  # type: ignore[attr-defined]
            rows.append({"formulation": name, "pass": way, **least(args, name, way), **figures})
            runs[f"{name}, {way}"] = functools.partial(program.run, *arrays)
    if not args.topology:
        found = interleaved(runs, args.repeats)
        rows = [{**row, **rates(row, found[f"{row['formulation']}, {row['pass']}"])} for row in rows]
    show(args, rows)
    return finish_report(report, args, results=rows)


def rates(row: Row, timing: Row) -> Row:
    """The timing, and how many of the least bytes and operations were done in a second."""
    seconds = timing["median_seconds"]
    return {
        **timing,
        "gigabytes_per_second": row["least_bytes"] / seconds / 1e9,
        "gigaflops_per_second": 2 * row["multiply_adds"] / seconds / 1e9,
    }


def show(args: Args, rows: Sequence[Row]) -> None:
    """The table: times where there are some, else the compiler's estimate."""
    timed = not args.topology
    key = "median_seconds" if timed else "estimated_seconds"
    floors = {row["pass"]: row.get(key) for row in rows if row["formulation"] == PLAIN}

    def line(row: Row) -> list[Any]:
        memory = row["program"]["memory"]
        seconds, floor = row.get(key), floors[row["pass"]]
        head = [row["formulation"], row["pass"]]
        times = (
            [ms(row), seconds / floor, row["gigabytes_per_second"], row["gigaflops_per_second"]]
            if timed
            else [seconds and 1e3 * seconds, seconds and floor and seconds / floor, row.get("unestimated")]
        )
        counts = [row["least_bytes"] / 1e6, 2 * row["multiply_adds"] / 1e9]
        flops, accessed = row["xla_flops"], row["xla_bytes_accessed"]
        xla = [flops and flops / 1e9, accessed and accessed / 1e6, mebi(memory and memory["temporaries"])]
        return [*head, *times, *counts, *([] if timed else [row["hbm_bytes"] / 1e6]), *xla]

    rated = ["ms: median (min–max)", "/ plain", "GB/s", "GFLOP/s"]
    estimated = ["compiler's ms", "/ plain", "not estimated"]
    print_table(
        f"{args.batch} × {args.height} × {args.width} × {args.channels}, stride {args.stride}, "
        f"{args.deformable_groups} deformable groups, {args.groups} groups, {args.dtype}, "
        + (f"compiled for {args.topology}, not run" if args.topology else jax.default_backend()),
        [
            *("formulation", "pass", *(rated if timed else estimated)),
            *("least MB", "least GFLOP", *([] if timed else ["HBM MB"])),
            *("XLA's GFLOP", "XLA's MB", "temporary MiB"),
        ],
        [line(row) for row in rows],
    )


if __name__ == "__main__":
    main()
