"""Convolutions against XLA's own, forward and gradients, as each platform has them."""

import contextlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh

from tood_jax.distributed.sharding import make_mesh
from tood_jax.models.layers import conv
from tood_jax.ops.conv.block_diagonal import block_diagonal
from tood_jax.ops.conv.conv2d import conv2d
from tood_jax.ops.conv.space_to_depth import conv2d_space_to_depth
from tood_jax.tools.compile_for.report import collectives_of


def native(x, kernel, stride, padding, groups):
    """XLA's convolution."""
    around = ((padding, padding), (padding, padding))
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), around, dimension_numbers=layout, feature_group_count=groups
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(32, 35), (7, 9), (1, 2)])
@pytest.mark.parametrize(
    ("size", "groups", "inputs", "outputs"),
    [(1, 1, 8, 12), (3, 1, 8, 12), (3, 1, 28, 3), (3, 1, 64, 65), (3, 4, 8, 12), (7, 1, 8, 12)],
)
def test_equals_the_native_one(stride, height, width, size, groups, inputs, outputs):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, inputs // groups, outputs)), jnp.float32)
    options = {"stride": stride, "padding": size // 2, "groups": groups}
    cotangent = rng.standard_normal(jax.eval_shape(partial(native, **options), x, kernel).shape).astype(np.float32)

    @jax.jit
    def all_of(x, kernel, cotangent):
        ours, pull_back = jax.vjp(lambda x, kernel: conv2d(x, kernel, *options.values()), x, kernel)
        theirs, native_pull_back = jax.vjp(partial(native, **options), x, kernel)
        return (ours, *pull_back(cotangent)), (theirs, *native_pull_back(cotangent))

    for ours, theirs in zip(*all_of(x, kernel, cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(("size", "outputs", "on_cpus"), [(1, 4, (0, 3)), (3, 4, (2, 3)), (3, 1, (2, 1))])
def test_platform_compiled_for_decides(size, outputs, on_cpus):
    """On a CPU the kernel's gradient is a product a column, or one; everywhere else all three stay convolutions."""
    assert_convolutions_and_products(jnp.ones((2, 16, 16, 9)), jnp.ones((size, size, 9, outputs)), on_cpus)


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "on_cpus"),
    [
        (16, 128, jnp.float32, (1, 4)),  # the map's gradient one product, the kernel's three
        (16, 64, jnp.float32, (0, 5)),  # few outputs: forward is a product, too
        (16, 63, jnp.float32, (2, 3)),  # too narrow
        (16, 64, jnp.bfloat16, (2, 3)),  # nine roundings
        (80, 64, jnp.float32, (2, 3)),  # too large a map
        (8, 64, jnp.float32, (1, 2)),  # so small a kernel and map that the kernel's gradient stays a convolution
        (8, 256, jnp.float32, (1, 4)),
    ],
)
def test_small_maps_and_wide_kernels_have_gradients_by_products(side, channels, dtype, on_cpus):
    x, kernel = jnp.ones((2, side, side, channels), dtype), jnp.ones((3, 3, channels, channels), dtype)
    assert_convolutions_and_products(x, kernel, on_cpus)


def assert_convolutions_and_products(x, kernel, on_cpus):
    size = len(kernel)

    def gradients(x, kernel):
        out, pull_back = jax.vjp(lambda x, kernel: conv2d(x, kernel, 1, size // 2), x, kernel)
        return out, pull_back(out)

    def counts(platform):
        text = jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    assert counts("tpu") == counts("cuda") == (3, 0)
    assert counts("cpu") == on_cpus


@pytest.mark.parametrize("size", [3, 7, 11])
@pytest.mark.parametrize(("height", "width", "inputs"), [(2, 2, 3), (10, 14, 3), (16, 4, 1)])
def test_space_to_depth_equals_the_convolution(size, height, width, inputs):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, height, width, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, inputs, 5)), jnp.float32)
    np.testing.assert_allclose(
        conv2d_space_to_depth(x, kernel), native(x, kernel, 2, size // 2, 1), rtol=1e-5, atol=1e-4
    )


def test_only_a_stem_on_tpus_uses_space_to_depth():
    def kernel_size(platform, *, side=8, inputs=3, stride=2, space=1):
        x, kernel = jnp.ones((1, side, side, inputs)), jnp.ones((7, 7, inputs, 4))
        with use_abstract_mesh(AbstractMesh((1, space), ("data", "space"))):
            traced = jax.jit(partial(conv2d, stride=stride, padding=3)).trace(x, kernel)
            text = traced.lower(lowering_platforms=(platform,)).as_text()
        (size,) = re.findall(r"stablehlo.convolution.*\(tensor<[^>]*>, tensor<(\d)x", text)
        return int(size)

    assert kernel_size("tpu") == 4
    for options in ({"side": 9}, {"inputs": 8}, {"stride": 1}, {"space": 2}):
        assert kernel_size("tpu", **options) == 7
    assert kernel_size("cpu") == kernel_size("cuda") == 7


@pytest.mark.parametrize(
    ("depth", "groups", "stride", "blocks"),
    [(4, 6, 1, 1), (8, 32, 2, 2), (48, 3, 1, 3), (128, 2, 1, 2)],  # 24, 128, 48 and 128 channels a block
)
def test_grouped_ones_in_blocks_have_the_same_values_and_gradients(depth, groups, stride, blocks):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 5, 6, depth * groups)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, depth, 2 * groups)), jnp.float32)
    wide, count = block_diagonal(kernel, groups, 128)
    assert (count, wide.shape) == (blocks, (3, 3, depth * groups // blocks, 2 * groups))

    def in_blocks(x, kernel):
        wide, count = block_diagonal(kernel, groups, 128)
        return native(x, wide, stride, 1, count)

    @jax.jit
    def both(x, kernel):
        expected, pull_back = jax.vjp(lambda x, kernel: native(x, kernel, stride, 1, groups), x, kernel)
        ours, our_pull_back = jax.vjp(in_blocks, x, kernel)
        return (ours, expected), tuple(zip(our_pull_back(expected), pull_back(expected), strict=True))

    (ours, expected), gradients = both(x, kernel)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    for found, gradient in gradients:
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-3)


def test_only_tpus_put_groups_together():
    x, kernel = jnp.ones((1, 8, 8, 256)), jnp.ones((3, 3, 8, 256))

    def gradients(x, kernel):
        out, pull_back = jax.vjp(partial(conv2d, padding=1, groups=32), x, kernel)
        return out, pull_back(out)

    def groups(platform):
        text = jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        pattern = r"(batch_group_count|feature_group_count) = (\d+)"
        return [
            max(int(count) for _, count in re.findall(pattern, line))
            for line in text.splitlines()
            if "stablehlo.convolution" in line
        ]

    assert groups("tpu") == [2, 2, 2]
    assert groups("cuda") == [32, 32, 32]
    assert groups("cpu") == [32, 32]  # and nine products


def test_grouped_layer_has_the_parameters_and_values_of_a_plain_one():
    layer = conv(12, 3, name="conv", dtype=jnp.float32, stride=2, groups=4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 7, 9, 8)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 2, 12)}}
    kernel = variables["params"]["kernel"]
    parts = [
        lax.conv_general_dilated(
            x[..., 2 * g : 2 * g + 2],
            kernel[..., 3 * g : 3 * g + 3],
            (2, 2),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        for g in range(4)
    ]
    np.testing.assert_allclose(layer.apply(variables, x), jnp.concatenate(parts, axis=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "stride", "length", "expected"), [(3, 2, 7, 4), (3, 2, 8, 4), (7, 2, 9, 5), (1, 1, 5, 5)]
)
def test_convolution_pads_as_pytorch(size, stride, length, expected):
    layer = conv(1, size, name="conv", dtype=jnp.float32, stride=stride)
    x = jnp.arange(float(length)).reshape(1, 1, length, 1)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.shape[2] == expected
    row = np.asarray(variables["params"]["kernel"])[size // 2, :, 0, 0]  # the only row of the kernel that meets the map
    padded = np.pad(np.arange(float(length)), size // 2)
    np.testing.assert_allclose(y[0, 0, 0, 0], padded[:size] @ row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", [1, 2])
def test_grouped_ones_stay_on_their_devices(space):
    """On GPUs XLA gathered the whole batch for them, forward and back; only kernels' gradients need to travel."""
    mesh = make_mesh(jax.devices()[:8], space)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((8, 8, 6, 16)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 16)), jnp.float32)

    def both(x, kernel, mesh=None):
        with use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext():
            out, pull_back = jax.vjp(lambda x, kernel: conv2d(x, kernel, 1, 1, 4), x, kernel)
            return (out, *pull_back(jnp.cos(out)))

    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data", "space"), PartitionSpec()))
    run = jax.jit(partial(both, mesh=mesh), in_shardings=(split, whole), out_shardings=(split, split, whole))
    compiled = run.lower(x, kernel).compile()
    assert {one.kind for one in collectives_of(compiled.as_text(), mesh) if one.axis == "data"} == {"all-reduce"}
    for spread, alone in zip(compiled(*jax.device_put((x, kernel), (split, whole))), both(x, kernel), strict=True):
        np.testing.assert_allclose(spread, alone, rtol=1e-4, atol=1e-4)
