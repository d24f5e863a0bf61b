"""The neck: sizes that don't divide, upsampling as PyTorch's, which map feeds which level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.geometry.locations import level_shapes
from tood_jax.models.fpn import FPN, upsample_nearest


@pytest.mark.parametrize("canvas", [(128, 160), (97, 130), (800, 1333), (32, 32)])
def test_levels_have_the_pyramids_shapes(canvas):
    shapes = level_shapes(*canvas)
    maps = tuple(jax.ShapeDtypeStruct((1, *s, c), jnp.float32) for s, c in zip(shapes, (8, 16, 32), strict=False))
    levels, _ = jax.eval_shape(FPN(channels=4).init_with_output, jax.random.key(0), maps)
    assert [x.shape for x in levels] == [(1, *s, 4) for s in shapes]


def test_upsample_nearest():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        upsample_nearest(x, 3, 5)[0, ..., 0], [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    )
    np.testing.assert_array_equal(
        upsample_nearest(x, 4, 6)[0, :, :, 0], np.kron([[0, 1, 2], [3, 4, 5]], np.ones((2, 2)))
    )
    np.testing.assert_array_equal(upsample_nearest(x, 2, 3), x)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_information_flows_down_only(norm):
    """C3 reaches P3 alone; C5 reaches every level. P6 and P7 come from P5's output."""
    neck = FPN(channels=4, norm=norm, norm_groups=1)
    rng = np.random.default_rng(0)
    maps = tuple(jnp.asarray(rng.standard_normal((1, s, s, 4)), jnp.float32) for s in (8, 4, 2))
    variables = jax.jit(neck.init)(jax.random.key(0), maps)
    assert ("output_4_norm" in variables["params"]) == (norm == "group")
    apply = jax.jit(neck.apply)
    levels = apply(variables, maps)
    for source, reached in ((0, [True, False, False, False, False]), (2, [True] * 5)):
        changed = apply(variables, tuple(2 * m + 1 if i == source else m for i, m in enumerate(maps)))
        assert [bool(jnp.any(a != b)) for a, b in zip(levels, changed, strict=True)] == reached


def test_p6_from_c5_and_a_relu_before_p7():
    """on_input: P6 sees C5 alone, so no output convolution; a negative P6 is nothing to P7 after the ReLU."""
    rng = np.random.default_rng(0)
    maps = tuple(jnp.asarray(rng.standard_normal((1, s, s, c)), jnp.float32) for s, c in ((8, 4), (4, 4), (2, 6)))
    neck = FPN(channels=4, extra_levels="on_input", relu_before_p7=True)
    variables = jax.jit(neck.init)(jax.random.key(0), maps)
    params = variables["params"]
    assert params["output_3"]["kernel"].shape == (3, 3, 6, 4)
    apply = jax.jit(neck.apply)
    before = apply(variables, maps)
    other = params | {"output_2": jax.tree.map(lambda x: 3 * x + 1, params["output_2"])}
    after = apply({"params": other}, maps)
    assert [bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True)] == [False, False, True, False, False]
    negative = params | {"output_3": jax.tree.map(jnp.zeros_like, params["output_3"]) | {"bias": -jnp.ones(4)}}
    np.testing.assert_allclose(apply({"params": negative}, maps)[4], 0)  # output_4's bias starts at 0
