"""Compile T-head's interactive layers on packed levels, with gradients: two formulations of GroupNorm, two option sets.

    python -m benchmarks.cases.interactive_layers --topology v5e:2x2   # needs jax[tpu]; no TPU

Three layers of convolution, GroupNorm and ReLU in bfloat16. "HBM MB" is counted in the compiled text, "M cycles" is the
compiler's estimate without overlap (tools/compile_for/traffic.py). Without --topology it compiles for this machine.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import chip_sharding, compile_program, compiler_estimates
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from tood_jax.distributed.compiler_options import DEFAULT_OPTIONS
from tood_jax.geometry.locations import make_pyramid
from tood_jax.ops.conv.conv2d import conv2d
from tood_jax.ops.group_norm import EPSILON
from tood_jax.ops.t_head.level_maps import Layout, LevelMaps, layout_of
from tood_jax.ops.t_head.norm_relu import norm_relu

NAME = "interactive_layers"
LAYERS, GROUPS = 3, 32


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    batch: int = 4
    """Images B."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    channels: int = 256
    """Channels of the layers."""
    topology: str = ""
    """A TPU topology to compile for, v5e:2x2 for instance."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Compile, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compile the interactive layers on packed levels.")
    report = begin_report(NAME, argv, args)
    sharding = chip_sharding(args.topology) if args.topology else SingleDeviceSharding(jax.devices()[0])
    layout = layout_of(make_pyramid(args.height, args.width).shapes)

    def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    features = shape(args.batch, layout.height, layout.width, args.channels)
    affine = shape(args.channels, dtype=jnp.float32)
    layers = [(shape(3, 3, args.channels, args.channels), affine, affine)] * LAYERS
    device: jax.Device = next(iter(sharding.device_set))
    options_of_package = DEFAULT_OPTIONS.get(device.platform, {})
    rows = []
    for way, norm, options in (
        ("norm_relu, options of tood_jax", norm_relu, options_of_package),
        ("norm_relu, the compiler's own options", norm_relu, {}),
        ("GroupNorm of each level, options of tood_jax", norm_relu_by_level, options_of_package),
    ):
        program = compile_program(
            jax.jit(layers_gradient(norm, layout), compiler_options=options), layers, features, features
        )
        rows.append({"way": way, **compiler_estimates(program)})
    print_table(
        f"{LAYERS} layers and gradients, {args.batch} × {args.height} × {args.width}, {args.topology or 'here'}",
        ["way", "HBM MB", "M cycles", "compile, s"],
        [[row["way"], row["hbm_bytes"] / 1e6, row["cycles"] / 1e6, row["compile_seconds"]] for row in rows],
    )
    return finish_report(report, args, results=rows)


def layers_gradient(norm: Callable[..., LevelMaps], layout: Layout) -> Callable[..., Any]:
    """Return a function from (layers, features, cotangent) to the gradients of layers and features."""

    def run(layers: Any, x: jax.Array) -> jax.Array:
        for kernel, scale, bias in layers:
            maps = LevelMaps(conv2d(x, kernel, 1, 1), layout, is_cleared=False)
            x = norm(maps, scale, bias, GROUPS).data  # with zeros in the gaps again
        return x

    return lambda layers, x, cotangent: jax.vjp(run, layers, x)[1](cotangent)


def norm_relu_by_level(maps: LevelMaps, scale: jax.Array, bias: jax.Array, groups: int) -> LevelMaps:
    """Compute what norm_relu computes, by flax's GroupNorm on each level and automatic differentiation."""
    norm = nn.GroupNorm(groups, epsilon=EPSILON, dtype=maps.data.dtype, use_fast_variance=False)
    variables = {"params": {"scale": scale, "bias": bias}}

    def norm_and_relu(level: jax.Array) -> jax.Array:
        normed = norm.apply(variables, level)
        assert isinstance(normed, jax.Array)  # a tuple only with mutable variables
        return nn.relu(normed)

    return LevelMaps.join([norm_and_relu(level) for level in maps.levels()])


if __name__ == "__main__":
    main()
