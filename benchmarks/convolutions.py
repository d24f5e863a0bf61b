"""R50's convolutions and their gradients: the product's, XLA's own, and PyTorch's where it is installed.

    python -m benchmarks.convolutions --height 512 --width 512

Two of each kind, of the backbone's stages, the head's tower and its predictions at P3, at the size that they have for a
canvas. On a GPU or TPU the first two are the same program.
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

from benchmarks.common import (
    Options,
    Report,
    begin_report,
    compile_program,
    finish_report,
    interleaved,
    load_peers,
    ms,
    print_table,
    read_options,
)
from benchmarks.task import Run
from tood_jax.networks.convolution import convolve

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
    """Of the benchmark."""

    batch: int = 2
    """Images."""
    height: int = 512
    """Canvas height, pixels."""
    width: int = 512
    """Canvas width, pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of maps and kernels."""
    peer: bool = True
    """PyTorch too, if it is installed."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time convolutions and their gradients.")
    report = begin_report(NAME, argv, args)
    peers = load_peers() if args.peer and importlib.util.find_spec("torch") else None
    results = []
    for name, (map_stride, size, stride, inputs, outputs) in SHAPES.items():
        rng = np.random.default_rng(args.seed)
        height, width = args.height // map_stride, args.width // map_stride
        x = rng.standard_normal((args.batch, height, width, inputs), np.float32)
        kernel = rng.standard_normal((size, size, inputs, outputs), np.float32)
        sides = {
            "tood_jax": _runs(functools.partial(convolve, stride=stride, padding=size // 2), x, kernel, args.dtype),
            "XLA": _runs(functools.partial(_xla, stride=stride, padding=size // 2), x, kernel, args.dtype),
        }
        if peers:
            sides["torch"] = peers.convolution(x, kernel, stride, args.dtype)
        for what in ("forward", "to the map", "to the kernel"):
            timings = interleaved({side: runs[what] for side, runs in sides.items()}, args.repeats)
            results.append({"convolution": name, "what": what, **timings})
    print_table(
        f"Convolutions, {args.batch} × {args.height} × {args.width}, {args.dtype}, ms: median (min–max)",
        ["convolution", "what", *SIDES],
        [
            [r["convolution"], r["what"], *(ms(r[s]) if s in r else None for s in ("tood_jax", "XLA", "torch"))]
            for r in results
        ],
    )
    return finish_report(report, args, results=results)


def _xla(x, kernel, *, stride, padding):
    around, layout = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=layout)


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
        what: functools.partial(compile_program(jax.jit(one), *given).run, *given)
        for what, (one, given) in programs.items()
    }


if __name__ == "__main__":
    main()
