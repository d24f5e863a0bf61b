"""Per-side bilinear sampling: golden values and gradients, literals, and a plain loop, in both formulations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.golden_models import golden_ops
from tood_jax.ops.bilinear import gather, matmul
from tood_jax.ops.bilinear.sample_sides import sample_sides, sample_sides_of_levels

SHAPE = (1, 3, 4, 2)  # [B, H, W, S]
LEVELS = ((3, 4), (2, 3), (1, 2), (1, 1))
sample = jax.jit(sample_sides)
FORMULATIONS = gather.sample, matmul.sample


def plain(boxes, offsets):
    """The same with loops."""
    _, height, width, _ = boxes.shape
    out = np.zeros(boxes.shape)
    for b, i, j, s in np.ndindex(*boxes.shape):
        y, x = i + offsets[b, i, j, s, 0], j + offsets[b, i, j, s, 1]
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    out[b, i, j, s] += (1 - abs(y - row)) * (1 - abs(x - column)) * boxes[b, row, column, s]
    return out


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_values_and_gradients_equal_golden(formulation):
    ops = golden_ops()
    boxes, offsets, cotangent, out, grad_boxes, grad_offsets = (
        jnp.asarray(np.moveaxis(ops[f"side_sampling.{name}"], 1, -1))
        for name in ("feature", "offset", "cotangent", "out", "grad_feature", "grad_offset")
    )

    def sample(boxes, offsets):  # one level
        in_a_row = boxes.reshape(len(boxes), -1, 4), offsets.reshape(len(boxes), -1, 4, 2)
        return formulation(*in_a_row, (boxes.shape[1:3],)).reshape(boxes.shape)

    value, pull_back = jax.vjp(sample, boxes, offsets)
    np.testing.assert_allclose(value, out, atol=2e-6)
    to_boxes, to_offsets = pull_back(cotangent)
    np.testing.assert_allclose(to_boxes, grad_boxes, atol=5e-6)
    np.testing.assert_allclose(to_offsets.reshape(offsets.shape), grad_offsets, atol=1e-5)


def test_literals():
    boxes = jnp.arange(24.0).reshape(SHAPE)  # rises by 2 a column and by 8 a row
    offsets = jnp.zeros((*SHAPE, 2))
    np.testing.assert_array_equal(sample(boxes, offsets), boxes)  # nothing moves
    moved = sample(boxes, offsets.at[0, 1, 1, 1].set(jnp.array([0.5, 0.25])))
    np.testing.assert_allclose(moved[0, 1, 1], [10, 11 + 4 + 0.5])  # only this side of this cell
    faded = sample(boxes, offsets.at[0, 2, 0, 1].set(jnp.array([0.75, 0])))
    np.testing.assert_allclose(faded[0, 2, 0, 1], 0.25 * 17)  # three quarters out of the map
    gone = sample(boxes, jnp.full((*SHAPE, 2), -4.0))
    np.testing.assert_array_equal(gone, 0)


@given(
    arrays(np.float32, SHAPE, elements=st.floats(-10, 10, width=32)),
    arrays(np.float32, (*SHAPE, 2), elements=st.floats(-6, 6, width=32)),
)
def test_equals_a_plain_loop(boxes, offsets):
    np.testing.assert_allclose(sample(boxes, offsets), plain(boxes, offsets), atol=1e-4)


def test_far_offsets_give_zero_and_finite_gradients():
    offsets = jnp.full((*SHAPE, 2), 1e12).at[0, 0].set(-1e12)
    learn = jax.jit(jax.value_and_grad(lambda b, o: sample_sides(b, o).sum(), (0, 1)))
    value, gradients = learn(jnp.ones(SHAPE), offsets)
    assert value == 0
    assert all((g == 0).all() for g in gradients)


@given(
    arrays(np.float32, (2, 21, 2), elements=st.floats(-10, 10, width=32)),
    arrays(
        np.float32, (2, 21, 2, 2), elements=st.one_of(st.floats(-6, 6, width=32), st.sampled_from([0, 1, -1, 1e12]))
    ),
)
def test_products_equal_gathers_on_several_levels(boxes, offsets):
    (value, gradients), (other, others) = (of_levels(boxes, offsets) for of_levels in BOTH)
    np.testing.assert_allclose(value, other, atol=1e-5)
    for gradient, expected in zip(gradients, others, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


def _value_and_gradients(formulation):
    def run(boxes, offsets):
        value, pull_back = jax.vjp(partial(formulation, shapes=LEVELS), boxes, offsets)
        return value, pull_back(jnp.arange(1, value.size + 1, dtype=jnp.float32).reshape(value.shape) / value.size)

    return jax.jit(run)


BOTH = [_value_and_gradients(one) for one in FORMULATIONS]


def test_tpus_get_neither_gathers_nor_scatters():
    def learn(boxes, offsets):
        return jax.vjp(lambda *arguments: sample_sides_of_levels(*arguments, LEVELS), boxes, offsets)[1](boxes)

    traced = jax.jit(learn).trace(jnp.ones((2, 21, 2)), jnp.ones((2, 21, 2, 2)))
    found = {
        platform: [word in traced.lower(lowering_platforms=(platform,)).as_text() for word in ("gather", "scatter")]
        for platform in ("tpu", "cpu")
    }
    assert found == {"tpu": [False, False], "cpu": [True, True]}
