"""T-head's packed tower and its gradient, compiled for a TPU that isn't there: GroupNorm's two ways, and our options.

    python -m benchmarks.tower --topology v5e:2x2   # needs jax[tpu]; no TPU

Three layers of convolution, GroupNorm and ReLU in bfloat16. "HBM MB" is our own count of the compiled text, "M cycles"
the compiler's estimate without overlap (tood_jax/ahead_of_time/traffic.py); without --topology, for the device at hand.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks.common import (
    Options,
    Report,
    absent_chip,
    begin_report,
    compile_program,
    compiled_work,
    finish_report,
    print_table,
    read_options,
)
from tood_jax.compiling import OURS
from tood_jax.geometry.packing import Packing, pack, packing, unpack
from tood_jax.geometry.pyramid import pyramid
from tood_jax.networks.convolution import convolve
from tood_jax.networks.group_norm import EPSILON
from tood_jax.networks.packed_norm import packed_norm

NAME = "tower"
LAYERS, GROUPS = 3, 32


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    batch: int = 4
    """B."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    channels: int = 256
    """Of the tower."""
    topology: str = ""
    """A TPU topology to compile for, v5e:2x2 for instance."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Compile, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compile the packed tower.")
    report = begin_report(NAME, argv, args)
    sharding = absent_chip(args.topology) if args.topology else SingleDeviceSharding(jax.devices()[0])
    where = packing(pyramid(args.height, args.width).shapes)

    def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    features = shape(args.batch, where.height, where.width, args.channels)
    affine = shape(args.channels, dtype=jnp.float32)
    layers = [(shape(3, 3, args.channels, args.channels), affine, affine)] * LAYERS
    ours = OURS.get(next(iter(sharding.device_set)).platform, {})
    rows = []
    for way, norm, options in (
        ("packed_norm, our options", packed_norm, ours),
        ("packed_norm, the compiler's own options", packed_norm, {}),
        ("a GroupNorm a level, our options", norm_by_level, ours),
    ):
        program = compile_program(jax.jit(tower(norm, where), compiler_options=options), layers, features, features)
        rows.append({"way": way, **compiled_work(program)})
    print_table(
        f"{LAYERS} layers and gradients, {args.batch} × {args.height} × {args.width}, {args.topology or 'here'}",
        ["way", "HBM MB", "M cycles", "compile, s"],
        [[row["way"], row["hbm_bytes"] / 1e6, row["cycles"] / 1e6, row["compile_seconds"]] for row in rows],
    )
    return finish_report(report, args, results=rows)


def tower(norm: Callable[..., jax.Array], where: Packing) -> Callable[..., Any]:
    """Gradients of the layers' parameters and of the features: (layers, features, cotangent) → (…, …)."""

    def run(layers: Any, x: jax.Array) -> jax.Array:
        for kernel, scale, bias in layers:
            x = norm(convolve(x, kernel, 1, 1), scale, bias, GROUPS, where)
        return x

    return lambda layers, x, cotangent: jax.vjp(run, layers, x)[1](cotangent)


def norm_by_level(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, where: Packing) -> jax.Array:
    """What packed_norm computes, by flax a level and by autodiff."""
    norm = nn.GroupNorm(groups, epsilon=EPSILON, dtype=x.dtype, use_fast_variance=False)
    variables = {"params": {"scale": scale, "bias": bias}}
    return pack(tuple(nn.relu(norm.apply(variables, level)) for level in unpack(x, where)), where)


if __name__ == "__main__":
    main()
