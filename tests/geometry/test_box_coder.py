"""Box codings: anchors by hand, decoding and encoding as inverses, the ends of their ranges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.geometry.box_coder import MAX_LOG_DISTANCE, BoxCoder
from tood_jax.geometry.locations import make_pyramid

RETINA = BoxCoder("anchor_deltas", anchor_scale=4.0, anchor_octaves=3, anchor_ratios=(0.5, 1.0, 2.0))
HEIGHT, WIDTH = 3, 5


def grid(coding):
    """Points [H, W, 2] and anchors [H, W, A, 4] of a small level, strides."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    corner = np.stack([x, y], -1)
    return corner + coding.point_offset, np.tile(corner, 2)[:, :, None] + coding.base_anchors()


def test_retinanet_anchors_by_hand():
    anchors = RETINA.base_anchors()
    assert anchors.shape == (9, 4) == (RETINA.per_location, 4)
    widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    np.testing.assert_allclose(heights / widths, np.repeat([0.5, 1, 2], 3), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(widths * heights), np.tile(4 * 2 ** (np.arange(3) / 3), 3), rtol=1e-6)
    np.testing.assert_allclose(anchors[:, :2], -anchors[:, 2:])


def test_the_row_of_anchors_goes_cell_by_cell():
    cells = make_pyramid(64, 64, RETINA.per_location)
    anchors = cells.anchors_of(RETINA.base_anchors())
    assert len(anchors) == len(cells.points) == 9 * len(make_pyramid(64, 64).points)
    np.testing.assert_allclose(anchors[9 * 10 : 9 * 11], np.tile([16, 8], 2) + 8 * RETINA.base_anchors())  # (row 1, 2)
    np.testing.assert_array_equal(
        make_pyramid(64, 64).anchors(8.0), make_pyramid(64, 64).anchors_of(BoxCoder().base_anchors())
    )


CODINGS = [
    BoxCoder("exp_distances", unit=2.0, point_offset=0.5),
    BoxCoder("relu_distances", point_offset=0.5),
    BoxCoder("anchor_deltas", anchor_scale=8.0),
    RETINA,
]


@functools.cache
def there_and_back(coding):
    points, anchors = grid(coding)

    @jax.jit
    def run(raw):
        boxes = coding.decode(raw).reshape(2, HEIGHT, WIDTH, -1, 4)
        return coding.encode(boxes, jnp.asarray(points[:, :, None]), jnp.asarray(anchors)).reshape(raw.shape)

    return run


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: f"{coding.kind}_{coding.per_location}")
@given(seed=st.integers(0, 1000))
def test_encoding_is_the_inverse_of_decoding(coding, seed):
    raw = np.random.default_rng(seed).uniform(0.1, 2, (2, HEIGHT, WIDTH, 4 * coding.per_location)).astype(np.float32)
    np.testing.assert_allclose(there_and_back(coding)(raw), raw, rtol=2e-4, atol=2e-4)


@functools.partial(jax.jit, static_argnums=0)
def decode_both_ways(coding, raw, scale):
    return coding.decode(raw, scale), coding.decode(coding.at_scale_one(raw, jnp.asarray(scale)))


@pytest.mark.parametrize(
    "coding", [*CODINGS, BoxCoder("binned_distances")], ids=lambda coding: f"{coding.kind}_{coding.per_location}"
)
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_raw_numbers_at_scale_one_decode_to_the_boxes_of_a_learnt_scale(coding, scale):
    shape = (2, HEIGHT, WIDTH, coding.num_logits * coding.per_location)
    raw = jnp.asarray(np.random.default_rng(0).uniform(0.1, 2, shape), jnp.float32)
    boxes, back = decode_both_ways(coding, raw, scale)
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=1e-5)


def test_raw_numbers_of_a_scale_that_vanished_stay_finite():
    """A loss on them moves the raw numbers alone, whatever became of the scale."""
    coding = BoxCoder("exp_distances")
    gradients = jax.jit(jax.grad(lambda raw, s: coding.at_scale_one(raw, s).sum(), (0, 1)))
    for scale in (-1.0, 0.0, 1e-30):
        to_raw, to_scale = gradients(jnp.zeros(4), scale)
        assert np.isfinite(coding.at_scale_one(jnp.zeros(4), scale)).all()
        assert (to_raw == 1).all()
        assert to_scale == 0


def test_binned_distances_are_the_mean_of_the_distribution():
    coding = BoxCoder("binned_distances", bins=4)
    assert coding.num_logits == 20
    raw = np.full((1, 1, 1, 4, 5), -1e4, np.float32)
    for side, peak in enumerate((0, 1, 3, 4)):
        raw[0, 0, 0, side, peak] = 0
    raw[0, 0, 0, 1, 2] = 0  # two equal peaks
    boxes = coding.decode(jnp.asarray(raw.reshape(1, 1, 1, 20)))
    np.testing.assert_allclose(boxes[0, 0, 0], [0, -1.5, 3, 4], atol=1e-6)


@pytest.mark.parametrize("kind", ["exp_distances", "binned_distances"])
def test_encoded_distances_stay_in_range(kind):
    coding = BoxCoder(kind, unit=2.0, bins=16)
    box, point = jnp.asarray([5.0, -1000.0, 7.0, 1000.0]), jnp.zeros(2)  # left of the box: a negative distance
    encoded = coding.encode(box, point, jnp.zeros(4))
    assert jnp.isfinite(encoded).all()
    low, high = (-MAX_LOG_DISTANCE, MAX_LOG_DISTANCE) if kind == "exp_distances" else (0, 16 - 0.1)
    np.testing.assert_allclose([encoded[0], encoded[1]], [low, high], rtol=1e-6)


@pytest.mark.parametrize("kind", ["exp_distances", "relu_distances", "binned_distances", "anchor_deltas"])
def test_gradients_are_finite_and_the_level_scale_learns(kind):
    coding = BoxCoder(kind)
    raw = jax.random.normal(jax.random.key(0), (1, 2, 2, coding.num_logits)) * 5
    learn = jax.jit(jax.grad(lambda raw, scale: (coding.decode(raw, scale) ** 2).sum(), argnums=(0, 1)))
    gradients = learn(raw, 0.5)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)


def test_a_distance_of_zero_can_still_learn():
    """As in the published FCOS, whose clamp has slope 1 at 0."""
    learn = jax.jit(jax.grad(lambda raw: BoxCoder("relu_distances").decode(raw).sum()))
    slope = learn(jnp.zeros((1, 1, 1, 4)))
    np.testing.assert_array_equal(np.abs(slope), 1)
