"""Compare the formulations of the deformable convolution with each other and with a plain 3×3 convolution of its size.

    python -m benchmarks.cases.deformable_convolution --batch 2 --height 50 --width 84 --channels 256
    python -m benchmarks.cases.deformable_convolution --topology v5e:2x2 --dtype bfloat16  # needs jax[tpu]; no TPU

The plain convolution is a lower bound: it has the same matrix products on the same map, without sampling. With
`--topology` the programs are compiled for that TPU and not run: the report has the compiler's figures, and no times.

XLA counts the body of a loop once. "per_tap" loops over the nine taps and "matmul" over images and output rows, so
their FLOP, bytes and estimated times are the count times the iterations; an inner loop (of a scatter, or over the
further windows of rows that "matmul" reads where offsets are large) still counts once. These figures are therefore
lower bounds. "HBM MB", for TPUs, is counted in the compiled text (tood_jax/tools/compile_for/traffic.py).

"Gradient" is the backward pass alone, for all four arguments. Axes: as in tood_jax/ops/deform_conv/deform_conv2d.py.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.harness.deformable_inputs import (
    DeformableSizes,
    abstract_arguments,
    argument_shapes,
    random_arguments,
)
from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import Program, chip_sharding, compile_program, program_text
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table, to_mebibytes
from benchmarks.harness.timing import time_interleaved
from tood_jax.ops.deform_conv.deform_conv2d import Formulation, deform_conv2d
from tood_jax.ops.deform_conv.sampling_points import TAPS
from tood_jax.tools.compile_for.traffic import hbm_bytes

NAME = "deformable_convolution"
PLAIN = "plain convolution"


@dataclass(frozen=True)
class Args(DeformableSizes, Options):
    """Options of the case."""

    formulations: tuple[Formulation, ...] = get_args(Formulation)
    """Formulations to compare."""
    topology: str = ""
    """A TPU topology to compile for instead of running here, v5e:2x2 for instance."""


def least_work(args: Args, name: str, direction: str) -> Row:
    """Return the bytes that are read and written once and the multiply-adds, which every formulation needs.

    Forward: T·P·C·O / groups for the product, and 4·T·P·C for the four corners of each sample. Gradient: the product
    twice, and 4·T·P·C each for the columns (computed again, not kept), the corners' share of the cotangent (for offsets
    and mask) and the map's gradient. T taps, P output locations, C input and O output channels.
    """
    shapes = argument_shapes(args)
    sizes = {key: math.prod(shape) * jnp.dtype(dtype).itemsize for key, (shape, dtype) in shapes.items()}
    locations, depth = math.prod(shapes["cotangent"][0][:3]), args.channels // args.groups
    inputs = ["x", "kernel"] if name == PLAIN else ["x", "offsets", "mask", "kernel"]
    read = sum(sizes[key] for key in inputs)
    product = TAPS * locations * depth * args.channels
    corners = 0 if name == PLAIN else 4 * TAPS * locations * args.channels
    if direction == "forward":
        return {"least_bytes": read + sizes["cotangent"], "multiply_adds": product + corners}
    return {"least_bytes": 2 * read + sizes["cotangent"], "multiply_adds": 2 * product + 3 * corners}


def forward_functions(args: Args) -> dict[str, Callable[..., jax.Array]]:
    """Return the plain convolution and the formulations by name, functions of (x, offsets, mask, kernel)."""

    def plain(x, offsets, mask, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (args.stride, args.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=args.groups,
        )

    run = functools.partial(deform_conv2d, stride=args.stride, groups=args.groups)
    return {PLAIN: plain} | {name: functools.partial(run, formulation=name) for name in args.formulations}


def forward_and_gradient(function: Callable[..., jax.Array], *, is_plain: bool) -> dict[str, Callable]:
    """Return forward and backward pass, functions of (x, offsets, mask, kernel, cotangent)."""

    def gradient(x, offsets, mask, kernel, cotangent):
        if is_plain:
            return jax.vjp(lambda x, kernel: function(x, offsets, mask, kernel), x, kernel)[1](cotangent)
        return jax.vjp(function, x, offsets, mask, kernel)[1](cotangent)

    return {"forward": lambda *arrays: function(*arrays[:4]), "gradient": gradient}


def loop_iterations(name: str, args: Args) -> int:
    """Return the iterations of a formulation's outer loop, whose body XLA counts once."""
    rows = args.batch * argument_shapes(args)["cotangent"][0][1]
    return {"per_tap": TAPS, "matmul": rows}.get(name, 1)


def compiler_figures(program: Program, iterations: int) -> Row:
    """Return XLA's counts, times the iterations, and its own estimate of the time where it makes one (TPU).

    An operation that it cannot estimate counts −1 s in `optimal_seconds`; their number is `unestimated`.
    """
    about = program.about
    counts = {key: about[key] and about[key] * iterations for key in ("flops", "bytes_accessed")}
    row = {"rounds": iterations, **{f"xla_{key}": value for key, value in counts.items()}}
    seconds = (program.run.cost_analysis() or {}).get("optimal_seconds")
    if seconds is not None:
        unknown = max(0, -math.floor(seconds))
        row |= {"estimated_seconds": (seconds + unknown) * iterations, "unestimated": unknown}
    return {**row, "program": about}


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compare formulations of the deformable convolution.")
    report = begin_report(NAME, argv, args)
    arrays: Sequence[Any] = (
        abstract_arguments(args, chip_sharding(args.topology)) if args.topology else random_arguments(args, args.seed)
    )
    rows, runs = [], {}
    for name, function in forward_functions(args).items():
        for direction, run in forward_and_gradient(function, is_plain=name == PLAIN).items():
            program = compile_program(jax.jit(run), *arrays)
            figures = compiler_figures(program, loop_iterations(name, args))
            if args.topology:
                figures["hbm_bytes"] = hbm_bytes(program_text(program))
            rows.append({"formulation": name, "pass": direction, **least_work(args, name, direction), **figures})
            runs[f"{name}, {direction}"] = functools.partial(program.run, *arrays)
    if not args.topology:
        found = time_interleaved(runs, args.repeats)
        rows = [{**row, **rates(row, found[f"{row['formulation']}, {row['pass']}"])} for row in rows]
    print_rows(args, rows)
    return finish_report(report, args, results=rows)


def rates(row: Row, timing: Row) -> Row:
    """Return the timing, and the least bytes and operations per second of it."""
    seconds = timing["median_seconds"]
    return {
        **timing,
        "gigabytes_per_second": row["least_bytes"] / seconds / 1e9,
        "gigaflops_per_second": 2 * row["multiply_adds"] / seconds / 1e9,
    }


def print_rows(args: Args, rows: Sequence[Row]) -> None:
    """Print the table, with measured times or the compiler's estimates."""
    timed = not args.topology
    key = "median_seconds" if timed else "estimated_seconds"
    plain_seconds = {row["pass"]: row.get(key) for row in rows if row["formulation"] == PLAIN}

    def line(row: Row) -> list[Any]:
        memory = row["program"]["memory"]
        seconds, plain = row.get(key), plain_seconds[row["pass"]]
        ratio = seconds and plain and seconds / plain
        head = [row["formulation"], row["pass"]]
        times = (
            [format_milliseconds(row), ratio, row["gigabytes_per_second"], row["gigaflops_per_second"]]
            if timed
            else [seconds and 1e3 * seconds, ratio, row.get("unestimated")]
        )
        counts = [row["least_bytes"] / 1e6, 2 * row["multiply_adds"] / 1e9]
        flops, accessed = row["xla_flops"], row["xla_bytes_accessed"]
        xla = [flops and flops / 1e9, accessed and accessed / 1e6, to_mebibytes(memory and memory["temporaries"])]
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
