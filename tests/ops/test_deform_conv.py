"""Deformable convolution: the golden numbers in every formulation, plain convolution as a special case, extremes."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tests.golden_models import golden_ops
from tood_jax.models.deformable import DeformableConv
from tood_jax.ops.deform_conv.deform_conv2d import deform_conv2d
from tood_jax.ops.deform_conv.sampling_points import TAPS
from tood_jax.tools.compile_for.hlo_text import array_bytes

CASES = {"dcn_s1_dg1": (1, 1), "dcn_s2_dg1": (2, 1), "dcn_s1_dg4": (1, 1), "dcn_s1_dg1_g4": (1, 4)}  # stride, groups
FORMULATIONS = ("per_tap", "matmul", "im2col")


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def golden_case(name):
    """(x, offsets, mask, kernel) in our layouts, and everything else of a golden case."""
    ops = golden_ops()
    case = {key.split(".")[1]: ops[key] for key in ops if key.split(".")[0] == name}
    offsets, mask = nhwc(case["offset"]), nhwc(case["mask"])
    offsets = offsets.reshape(*offsets.shape[:3], -1, TAPS, 2)
    mask = mask.reshape(*mask.shape[:3], -1, TAPS)
    return (nhwc(case["x"]), offsets, mask, jnp.asarray(case["weight"].transpose(2, 3, 1, 0))), case


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_equal_golden(name, formulation):
    arguments, case = golden_case(name)
    stride, groups = CASES[name]

    @jax.jit
    def run(arguments, cotangent):
        out, back = jax.vjp(
            lambda *a: deform_conv2d(*a, stride=stride, groups=groups, formulation=formulation), *arguments
        )
        return out, back(cotangent)

    out, gradients = run(arguments, nhwc(case["cotangent"]))
    x, offsets, mask, kernel = gradients
    found = {
        "out": np.moveaxis(out + case["bias"], -1, 1),
        "grad_x": np.moveaxis(x, -1, 1),
        "grad_offset": np.moveaxis(offsets.reshape(*offsets.shape[:3], -1), -1, 1),
        "grad_mask": np.moveaxis(mask.reshape(*mask.shape[:3], -1), -1, 1),
        "grad_weight": kernel.transpose(3, 2, 0, 1),
    }
    for key, ours in found.items():
        np.testing.assert_allclose(ours, case[key], atol=2e-5 * np.abs(case[key]).max(), err_msg=key)


@functools.partial(jax.jit, static_argnames=("stride", "groups"))
def without_offsets(x, kernel, stride, groups):
    """A deformable convolution without offsets, and the plain one."""
    h, w = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    still, whole = jnp.zeros((2, h, w, 2, TAPS, 2)), jnp.ones((2, h, w, 2, TAPS))
    plain = lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
    return deform_conv2d(x, still, whole, kernel, stride=stride, groups=groups), plain


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.integers(0, 99))
def test_without_offsets_it_is_a_convolution(height, width, stride, groups, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, height, width, 4), np.float32)
    kernel = rng.standard_normal((3, 3, 4 // groups, 6), np.float32)
    ours, plain = without_offsets(x, kernel, stride=stride, groups=groups)
    np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_far_outside_lie_zeros_and_finite_gradients(formulation):
    (x, offsets, mask, kernel), _ = golden_case("dcn_s1_dg1")

    def total(x, offsets, mask, kernel):
        return deform_conv2d(x, offsets + 1e9, mask, kernel, formulation=formulation).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))(x, offsets, mask, kernel)
    assert float(value) == 0
    assert all(not np.asarray(gradient).any() for gradient in gradients)


def test_the_module_starts_as_half_a_convolution():
    """Offsets and logits start at 0, so that every tap counts by σ(0)."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 7, 8))
    module = DeformableConv(4, stride=2, deformable_groups=4)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    plain = lax.conv_general_dilated(
        x, variables["params"]["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(module.apply(variables, x), plain / 2, atol=1e-5)


def test_bfloat16_samples_at_float32_places():
    (x, offsets, mask, kernel), case = golden_case("dcn_s1_dg4")
    half = deform_conv2d(x.astype(jnp.bfloat16), offsets, mask, kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    golden = case["out"] - case["bias"][:, None, None]
    np.testing.assert_allclose(np.moveaxis(half.astype(jnp.float32), -1, 1), golden, atol=0.03 * np.abs(golden).max())


def by_loops(x, offsets, mask, kernel, stride):
    """Equation 1 with loops over places, groups and taps, in float64."""
    x, offsets, mask, kernel = (np.asarray(a, np.float64) for a in (x, offsets, mask, kernel))
    out = np.zeros((*offsets.shape[:3], kernel.shape[-1]))
    per_group = x.shape[-1] // offsets.shape[3]
    for b, i, j, g, tap in np.ndindex(*mask.shape):
        y, z = offsets[b, i, j, g, tap] + (i * stride - 1 + tap // 3, j * stride - 1 + tap % 3)
        channels = slice(g * per_group, (g + 1) * per_group)
        rows, columns = (np.maximum(0, 1 - np.abs(at - np.arange(n))) for at, n in ((y, x.shape[1]), (z, x.shape[2])))
        sampled = np.einsum("h,w,hwc->c", rows, columns, x[b, :, :, channels])
        out[b, i, j] += mask[b, i, j, g, tap] * sampled @ kernel[tap // 3, tap % 3, channels]
    return out


def random_arguments(seed, stride=1, reach=1.5, batch=2, height=4, width=5, groups=2, channels=4):
    rng = np.random.default_rng(seed)
    h, w = -(-height // stride), -(-width // stride)
    shapes = (
        (batch, height, width, channels),
        (batch, h, w, groups, TAPS, 2),
        (batch, h, w, groups, TAPS),
        (3, 3, channels, 3),
    )
    x, offsets, mask, kernel = (rng.standard_normal(shape) for shape in shapes)
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, offsets * reach, 1 / (1 + np.exp(-mask)), kernel))


@functools.partial(jax.jit, static_argnames="stride")
def in_all_formulations(arguments, stride):
    return {name: deform_conv2d(*arguments, stride=stride, formulation=name) for name in FORMULATIONS}


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from([0.3, 2.0, 30.0]))
def test_equals_plain_loops(seed, stride, reach):
    arguments = random_arguments(seed, stride, reach)
    expected = by_loops(*arguments, stride)
    for formulation, ours in in_all_formulations(arguments, stride).items():
        np.testing.assert_allclose(ours, expected, atol=2e-5, err_msg=formulation)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradients_equal_differences_in_float64(formulation):
    arguments = random_arguments(3)
    rng = np.random.default_rng(5)
    cotangent = rng.standard_normal((2, 4, 5, 3))
    gradients = jax.jit(
        lambda cotangent: jax.vjp(lambda *a: deform_conv2d(*a, formulation=formulation), *arguments)[1](cotangent)
    )(jnp.asarray(cotangent, jnp.float32))
    for place, gradient in enumerate(gradients):
        for index in rng.integers(0, gradient.size, 6):
            step = np.zeros(gradient.size)
            step[index] = 1e-6  # too small to reach the next cell
            moved = [
                (by_loops(*(np.asarray(a, np.float64) + sign * step.reshape(a.shape) * (k == place) if k == place else a
                            for k, a in enumerate(arguments)), 1) * cotangent).sum()
                for sign in (1, -1)
            ]  # fmt: skip
            np.testing.assert_allclose(np.ravel(gradient)[index], (moved[0] - moved[1]) / 2e-6, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("deformable_groups", "groups"),
    [
        pytest.param(1, 2, id="two blocks see one map"),
        pytest.param(4, 4, id="two deformable groups a block"),
        pytest.param(3, 6, id="a block each"),
        pytest.param(2, 6, id="three blocks of two deformable groups, so one"),
    ],
)
def test_columns_of_a_grouped_kernel_equal_gather(deformable_groups, groups):
    """Kernels wide enough to be split into blocks; elsewhere they are narrower than one."""
    x, offsets, mask, _ = random_arguments(2, height=3, width=4, groups=deformable_groups, channels=32 * groups)
    rng = np.random.default_rng(6)
    if groups == 2:
        x = jnp.concatenate([x, x[..., ::-1]], axis=-1)  # 64 channels a group
    kernel = jnp.asarray(rng.standard_normal((3, 3, x.shape[-1] // groups, 2 * groups)), jnp.float32)
    cotangent = jnp.asarray(rng.standard_normal((2, 3, 4, 2 * groups)), jnp.float32)

    def run(formulation):
        def convolve(*arguments):
            return deform_conv2d(*arguments, groups=groups, formulation=formulation)

        out, back = jax.vjp(convolve, x, offsets, mask, kernel)
        return out, *back(cotangent)

    both = jax.jit(lambda: (run("im2col"), run("per_tap")))()
    for ours, expected in zip(*both, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("platform", "formulation"), [("cpu", "per_tap"), ("cuda", "im2col"), ("rocm", "im2col"), ("tpu", "matmul")]
)
def test_the_platform_that_is_compiled_for_chooses(platform, formulation):
    def lowered(formulation):
        traced = jax.jit(lambda *a: deform_conv2d(*a, formulation=formulation)).trace(*random_arguments(0))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    def operations(text):
        return Counter(re.findall(r"stablehlo\.(gather|while|dot_general)\b", text))

    assert operations(lowered(None)) == operations(lowered(formulation))
    others = set(FORMULATIONS) - {formulation}
    assert all(operations(lowered(None)) != operations(lowered(other)) for other in others)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradients_in_bfloat16_are_near_those_in_float32(formulation):
    arguments = random_arguments(4)

    def gradients(dtype):
        x, offsets, mask, kernel = arguments

        def total(x, offsets, mask, kernel):
            out = deform_conv2d(x.astype(dtype), offsets, mask, kernel.astype(dtype), formulation=formulation)
            return (out.astype(jnp.float32) ** 2).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(x, offsets, mask, kernel)

    for half, whole in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert half.dtype == whole.dtype
        np.testing.assert_allclose(half, whole, atol=0.03 * np.abs(whole).max())


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_offsets_that_are_zero_learn_but_not_from_places_on_the_border(formulation):
    x, offsets, mask, kernel = random_arguments(1, reach=0.0)
    total = jax.jit(jax.grad(lambda offsets: deform_conv2d(x, offsets, mask, kernel, formulation=formulation).sum()))
    gradient = total(offsets)
    assert np.asarray(gradient[:, 1:-1, 1:-1]).all()
    assert not np.asarray(gradient[:, 0, :, :, :3]).any()  # looks at row −1 exactly: outside, as published


def test_a_sharded_batch_stays_where_it_is():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (["data"], []))
    placed = jax.device_put(random_arguments(0), (split, split, split, whole))
    for formulation in FORMULATIONS:

        def run(*arguments, formulation=formulation):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                out, back = jax.vjp(lambda *a: deform_conv2d(*a, formulation=formulation), *arguments)
            return back(out)

        compiled = jax.jit(run, out_shardings=(split, split, split, whole)).lower(*placed).compile().as_text()
        found = re.findall(r"= (\S+) (all-[\w-]+|collective-[\w-]+)\(", compiled)
        assert [kind for _, kind in found] == ["all-reduce"], (formulation, found)
        assert array_bytes(found[0][0]) == [placed[3].nbytes], formulation  # the kernel's gradient
