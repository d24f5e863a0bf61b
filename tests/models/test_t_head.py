"""T-head: decoding of both anchor types, the inside-out fallback, layer attention, compute types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.models import t_head
from tood_jax.models.layers import predictor
from tood_jax.models.t_head import THead
from tood_jax.ops.t_head.reduction import Attended, Pointwise, product_per_image, reduce_features, weight_kernels

OPTIONS = {"num_classes": 3, "channels": 16, "num_convs": 2, "norm_groups": 4}
RNG = np.random.default_rng(0)
LEVELS = tuple(jnp.asarray(RNG.standard_normal((2, s, s + 1, 16)), jnp.float32) for s in (8, 4, 3, 2, 1))


@pytest.fixture(scope="module")
def params():
    return jax.jit(THead(**OPTIONS).init)(jax.random.key(0), LEVELS)["params"]


def with_sides_and_offsets(params, sides, offsets):
    """Return parameters of a head with these box logits and these offsets (dy, dx per side) at every location."""

    def still(layer, bias):
        return jax.tree.map(jnp.zeros_like, layer) | {"bias": jnp.asarray(bias, jnp.float32)}

    align = params["align"] | {"reg_alignment_1": still(params["align"]["reg_alignment_1"], np.ravel(offsets))}
    return params | {"reg_sides": still(params["reg_sides"], sides), "align": align}


def boxes_of(params, **options):
    boxes = jax.jit(lambda p: THead(**OPTIONS, **options).apply({"params": p}, LEVELS))(params)[0].boxes
    return boxes.reshape(2, 8, 9, 4)


def points(height, width):
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def test_outputs(params):
    outputs = jax.jit(lambda p: THead(**OPTIONS).apply({"params": p}, LEVELS))(params)
    for features, (scores, boxes, *_) in zip(LEVELS, outputs, strict=True):
        count = features.shape[1] * features.shape[2]
        assert scores.shape == (2, count, 3)
        assert boxes.shape == (2, count, 4)
        np.testing.assert_allclose(scores, 0.01, rtol=0.2)  # the prior
        assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_anchor_free_boxes_are_distances_from_the_point(params):
    still = with_sides_and_offsets(params, np.log([1, 2, 3, 4]), np.zeros((4, 2)))
    boxes = boxes_of(still | {"scales": jnp.asarray([2.0, 1, 1, 1, 1])})
    at = points(8, 9)
    expected = np.concatenate([at - np.array([2, 4]), at + np.array([6, 8])], axis=-1)
    np.testing.assert_allclose(boxes, np.broadcast_to(expected, (2, 8, 9, 4)), rtol=1e-5, atol=1e-5)


def test_anchor_based_boxes_are_deltas_of_the_anchor(params):
    still = with_sides_and_offsets(params, [1.0, 0, np.log(2) / 0.2, 0], np.zeros((4, 2)))
    boxes = boxes_of(still, box_coder=BoxCoder("anchor_deltas", anchor_scale=4.0))
    center = points(8, 9) + np.array([0.4, 0])
    expected = np.concatenate([center - np.array([4, 2]), center + np.array([4, 2])], axis=-1)
    np.testing.assert_allclose(boxes, np.broadcast_to(expected, (2, 8, 9, 4)), rtol=1e-5, atol=1e-5)


def test_sides_are_sampled_each_at_its_own_place(params):
    """x0 from one row below changes nothing but the border; y1 from one row below grows by 1."""
    still = with_sides_and_offsets(params, np.zeros(4), [(1, 0), (0, 0), (0, 0), (1, 0)])
    boxes = boxes_of(still)
    at = points(8, 9)
    expected = np.concatenate([at - 1, at + np.array([1, 2])], axis=-1)
    np.testing.assert_allclose(boxes[:, :-1], np.broadcast_to(expected[:-1], (2, 7, 9, 4)), atol=1e-5)


def test_a_box_turned_inside_out_falls_back(params):
    """x0 from three cells to the right, x1 from three to the left: every box is inside out, or fades at the border."""
    before = boxes_of(with_sides_and_offsets(params, np.zeros(4), np.zeros((4, 2))))
    after = boxes_of(with_sides_and_offsets(params, np.zeros(4), [(0, 3), (0, 0), (0, -3), (0, 0)]))
    np.testing.assert_array_equal(after[:, :, 3:6], before[:, :, 3:6])
    assert (after[..., 2:] >= after[..., :2]).all()


def test_layer_attention_weighs_the_layers(params):
    """With attention 0 for all layers (σ(−∞)) the classification sees nothing but its biases."""
    blind = jax.tree.map(jnp.zeros_like, params["cls_decomposition"]["attention_1"])
    blind["bias"] = blind["bias"] - 200
    blinded = params | {"cls_decomposition": params["cls_decomposition"] | {"attention_1": blind}}
    apply = jax.jit(lambda p: THead(**OPTIONS).apply({"params": p}, LEVELS[:1])[0][0])
    scores, seeing = apply(blinded), apply(params)
    assert float(jnp.abs(scores - seeing).max()) > 0
    logits = params["cls_logits"]["bias"]
    spread = scores / scores[..., :1]  # the alignment is common to all classes, so their ratio is that of the biases
    np.testing.assert_allclose(
        spread, np.broadcast_to(jnp.sqrt(jax.nn.sigmoid(logits) / jax.nn.sigmoid(logits[0])), spread.shape), rtol=1e-5
    )


@pytest.mark.parametrize("coding", ["exp_distances", "anchor_deltas"])
def test_bfloat16_gives_float32_near_the_float32_ones(params, coding):
    outputs = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        head = THead(**OPTIONS, box_coder=BoxCoder(coding), dtype=dtype)
        outputs[dtype] = jax.jit(lambda p, head=head: head.apply({"params": p}, LEVELS))(params)
    for full, half in zip(jax.tree.leaves(outputs[jnp.float32]), jax.tree.leaves(outputs[jnp.bfloat16]), strict=True):
        assert half.dtype == jnp.float32
        assert np.isfinite(half).all()
        np.testing.assert_allclose(half, full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_weighted_kernels_have_the_gradients_of_plain_broadcasting(platform):
    rng = np.random.default_rng(0)
    weights, kernels, cotangent = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 2, 6), (6, 8, 5), (3, 2, 6, 8, 5))
    )

    def gradients(function):
        return jax.jit(lambda *given: jax.vjp(function, *given[:2])[1](given[2]))

    plain = gradients(lambda weights, kernels: weights[..., None, None] * kernels)
    for ours, expected in zip(
        *(f(weights, kernels, cotangent) for f in (gradients(weight_kernels), plain)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    traced = gradients(weight_kernels).trace(weights, kernels, cotangent)
    assert ("dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()) == (platform == "cpu")


def test_the_product_of_each_image_has_einsums_gradients():
    x, kernels, cotangent = (
        jnp.asarray(RNG.standard_normal(s), jnp.float32) for s in ((2, 3, 4, 5), (2, 5, 6), (2, 3, 4, 6))
    )
    out, pull_back = jax.vjp(product_per_image, x, kernels)
    expected, pull_back_plain = jax.vjp(lambda x, k: jnp.einsum("bhwi,bio->bhwo", x, k), x, kernels)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    for ours, plain in zip(pull_back(cotangent), pull_back_plain(cotangent), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", [((8, 9),), ((4, 3),), ((8, 9), (4, 5), (2, 3))])
def test_reductions_equal_their_formula(shapes):
    """Weight the layers, then convolve: on a large map, on one smaller than the channels, and on several levels."""
    features = [jnp.asarray(RNG.standard_normal((2, *shape, 32)), jnp.float32) for shape in shapes]
    weights = [jnp.asarray(RNG.uniform(size=(2, len(shapes), 1, 2)), jnp.float32) for _ in range(2)]
    kernels = [jnp.asarray(RNG.standard_normal((1, 1, 32, n)), jnp.float32) for n in (16, 16, 4, 4)]
    bias = jnp.asarray(RNG.standard_normal(4), jnp.float32)
    attended = [Attended(*pair) for pair in zip(weights, kernels[:2], strict=True)]
    outputs = jax.jit(reduce_features)(features, attended, [Pointwise(kernel, bias) for kernel in kernels[2:]])
    for index, out in enumerate(outputs):
        for level, found in enumerate(out.levels()):
            x = features[level]
            if index < 2:
                x = (x.reshape(*x.shape[:3], 2, 16) * weights[index][:, level, 0][:, None, None, :, None]).reshape(
                    x.shape
                )
            expected = x @ kernels[index][0, 0] + (0 if index < 2 else bias)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert out.is_cleared


def test_a_kernel_that_is_not_1x1_is_refused():
    kernel = jnp.zeros((3, 3, 32, 4))
    attended = [Attended(jnp.zeros((2, 1, 1, 2)), jnp.zeros((1, 1, 32, 16)))]
    with pytest.raises(ValueError, match="got a 3×3 kernel: apply that convolution to the interactive features itself"):
        reduce_features([jnp.zeros((2, 8, 9, 32))], attended, [Pointwise(kernel, jnp.zeros(4))])


@pytest.mark.parametrize("packed", [False, True])
def test_an_offset_branch_of_3x3_is_refused(monkeypatch, packed):
    """It would be computed as 1×1 otherwise. On maps of all sizes, and on all levels in one array."""

    def wider(channels, name, dtype, **options):
        return predictor(channels, name, dtype, **(options | ({"size": 3} if name == "reg_alignment_0" else {})))

    monkeypatch.setattr(t_head, "predictor", wider)
    with pytest.raises(ValueError, match="got a 3×3 kernel"):
        jax.eval_shape(THead(**OPTIONS, packed=packed).init, jax.random.key(0), LEVELS)
