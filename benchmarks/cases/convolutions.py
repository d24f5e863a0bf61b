"""Time R50's convolutions and their gradients: tood_jax's, XLA's own, and PyTorch's where it is installed.

    python -m benchmarks.cases.convolutions --height 512 --width 512

The convolutions are those of the backbone's stages, and of the head's interactive layers and predictions at P3, at
their sizes for a canvas. On a GPU or TPU tood_jax's and XLA's are the same program.
"""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import compile_program
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table
from benchmarks.harness.timing import time_interleaved
from benchmarks.peers.load import load_plain_torch
from benchmarks.peers.protocol import Run
from tood_jax.ops.conv.conv2d import conv2d

NAME = "convolutions"
SIDES = ("tood_jax", "XLA", "torch")
SHAPES = {  # stride of the input map in the image, size, stride, I, O
    "c2, 1×1, reducing": (4, 1, 1, 256, 64),
    "c2, 1×1, expanding": (4, 1, 1, 64, 256),
    "c3, 1×1, downsampling": (4, 1, 2, 256, 512),
    "c3, 3×3": (8, 3, 1, 128, 128),
    "c4, 3×3, downsampling": (8, 3, 2, 256, 256),
    "c5, 1×1, reducing": (32, 1, 1, 2048, 512),
    "P3, 3×3, tower": (8, 3, 1, 256, 256),
    "P3, 3×3, classes": (8, 3, 1, 256, 80),
    "P3, 3×3, sides": (8, 3, 1, 256, 4),
}


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    batch: int = 2
    """Images."""
    height: int = 512
    """Canvas height, pixels."""
    width: int = 512
    """Canvas width, pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of maps and kernels."""
    peer: bool = True
    """Measure PyTorch too, if it is installed."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time convolutions and their gradients.")
    report = begin_report(NAME, argv, args)
    plain_torch = load_plain_torch() if args.peer and importlib.util.find_spec("torch") else None
    found: dict[tuple[str, str], dict[str, Row]] = {}  # by convolution and what is computed, timings of each side
    for name, (map_stride, size, stride, inputs, outputs) in SHAPES.items():
        rng = np.random.default_rng(args.seed)
        height, width = args.height // map_stride, args.width // map_stride
        x = rng.standard_normal((args.batch, height, width, inputs), np.float32)
        kernel = rng.standard_normal((size, size, inputs, outputs), np.float32)
        sides = {
            "tood_jax": _runs(functools.partial(conv2d, stride=stride, padding=size // 2), x, kernel, args.dtype),
            "XLA": _runs(functools.partial(_xla, stride=stride, padding=size // 2), x, kernel, args.dtype),
        }
        if plain_torch:
            sides["torch"] = plain_torch.convolution_runs(x, kernel, stride, args.dtype)
        for what in ("forward", "to the map", "to the kernel"):
            found[name, what] = time_interleaved({side: runs[what] for side, runs in sides.items()}, args.repeats)
    print_table(
        f"Convolutions, {args.batch} × {args.height} × {args.width}, {args.dtype}, ms: median (min–max)",
        ["convolution", "what", *SIDES],
        [
            [name, what, *(format_milliseconds(timings[side]) if side in timings else None for side in SIDES)]
            for (name, what), timings in found.items()
        ],
    )
    results = [{"convolution": name, "what": what, **timings} for (name, what), timings in found.items()]
    return finish_report(report, args, results=results)


def _xla(x, kernel, *, stride, padding):
    paddings, layout = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), paddings, dimension_numbers=layout)


def _runs(function: Any, x: np.ndarray, kernel: np.ndarray, dtype: str) -> dict[str, Run]:
    def to_map(x, kernel, cotangent):
        return jax.vjp(lambda x: function(x, kernel), x)[1](cotangent)

    def to_kernel(x, kernel, cotangent):
        return jax.vjp(lambda kernel: function(x, kernel), kernel)[1](cotangent)

    arguments = jax.device_put((jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)))
    cotangent = jnp.ones_like(jax.jit(function)(*arguments))
    programs = {
        "forward": (function, arguments),
        "to the map": (to_map, (*arguments, cotangent)),
        "to the kernel": (to_kernel, (*arguments, cotangent)),
    }
    return {
        what: functools.partial(compile_program(jax.jit(program), *inputs).run, *inputs)
        for what, (program, inputs) in programs.items()
    }


if __name__ == "__main__":
    main()
