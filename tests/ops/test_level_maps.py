"""T-head on all levels in one array, scanned and rematerialised, against T-head level by level: equal to rounding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.models.layers import Norm, conv
from tood_jax.models.t_head import THead
from tood_jax.ops.t_head.level_maps import (
    LevelMaps,
    broadcast_levels,
    clear,
    layout_of,
    level_sums,
    pack,
    unpack,
)
from tood_jax.ops.t_head.norm_relu import norm_relu

SHAPES = ((6, 7), (3, 4), (2, 2), (1, 1), (1, 1))
LAYOUT = layout_of(SHAPES)
OPTIONS = {"num_classes": 3, "channels": 16, "num_convs": 2, "norm_groups": 4}
RNG = np.random.default_rng(0)
LEVELS = tuple(jnp.asarray(RNG.standard_normal((2, *shape, 16)), jnp.float32) for shape in SHAPES)


def test_levels_lie_apart():
    levels = LAYOUT.level_index()
    assert levels.shape == (LAYOUT.height, LAYOUT.width)
    for index, (height, width) in enumerate(SHAPES):
        assert (levels == index).sum() == height * width
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):  # a 3×3 convolution sees no other level
        neighbour = np.roll(levels, step, axis=(0, 1))[1:, 1:-1]
        here = levels[1:, 1:-1]
        assert ((here == neighbour) | (here < 0) | (neighbour < 0)).all()


@pytest.mark.parametrize(("height", "width"), [(100, 168), (168, 100), (16, 20), (1, 1)])
def test_canvases_of_any_shape(height, width):
    shapes = [(height, width)]
    for _ in range(4):
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    layout = layout_of(shapes)
    assert [(layout.level_index() == i).sum() for i in range(5)] == [h * w for h, w in shapes]
    if min(height, width) >= 100:
        assert layout.height * layout.width < 1.14 * sum(h * w for h, w in shapes)


def test_there_and_back():
    canvas = pack(LEVELS, LAYOUT)
    assert not np.asarray(canvas)[:, LAYOUT.level_index() < 0].any()
    for level, back in zip(LEVELS, unpack(canvas, LAYOUT), strict=True):
        np.testing.assert_array_equal(back, level)
    cleared = clear(jnp.ones_like(canvas), LAYOUT)
    np.testing.assert_array_equal(cleared[0, ..., 0], LAYOUT.level_index() >= 0)


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:2], SHAPES[:1]])
def test_sums_a_level_leave_out_what_lies_in_gaps(shapes):
    layout = layout_of(shapes)
    in_gaps = jnp.where((layout.level_index() < 0)[..., None], 1e6, 0)
    levels = LEVELS[: len(shapes)]
    expected = np.stack([np.sum(level, axis=(1, 2)) for level in levels], axis=1)
    np.testing.assert_allclose(level_sums(pack(levels, layout) + in_gaps, layout), expected, rtol=1e-4, atol=1e-5)
    spread = broadcast_levels(jnp.asarray(expected), layout)
    for i, level in enumerate(unpack(spread, layout)):
        np.testing.assert_array_equal(level, np.broadcast_to(expected[:, i, None, None], level.shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norm_relu_of_all_levels_equals_group_norm_and_relu(dtype):
    levels = tuple((3 * x + 1).astype(dtype) for x in LEVELS)
    scale, bias = (jnp.asarray(RNG.standard_normal(16), jnp.float32) for _ in range(2))
    cotangents = tuple(jnp.asarray(RNG.standard_normal(x.shape), dtype) for x in levels)

    def plain(levels, scale, bias):
        norm = Norm("group", 4, levels[0].dtype)
        variables = {"params": {"norm": {"scale": scale, "bias": bias}}}
        return tuple(jax.nn.relu(norm.apply(variables, x)) for x in levels)

    def packed(levels, scale, bias):
        return norm_relu(LevelMaps.join(levels), scale, bias, 4).levels()

    @jax.jit
    def both(*arguments):
        (a, pull_a), (b, pull_b) = (jax.vjp(way, *arguments) for way in (plain, packed))
        return (a, pull_a(cotangents)), (b, pull_b(cotangents))

    tolerance = 2e-5 if dtype == "float32" else 0.03
    for theirs, ours in zip(*(jax.tree.leaves(one) for one in both(levels, scale, bias)), strict=True):
        theirs, ours = (np.asarray(x, np.float32) for x in (theirs, ours))
        assert np.abs(theirs - ours).max() <= tolerance * max(np.abs(theirs).max(), 1)


def test_norm_relu_leaves_gaps_at_zero():
    ones = jnp.ones(16)
    assert not np.asarray(norm_relu(LevelMaps.join(LEVELS), ones, ones, 4).data)[:, LAYOUT.level_index() < 0].any()


@pytest.fixture(scope="module")
def params():
    params = jax.jit(THead(**OPTIONS).init)(jax.random.key(0), LEVELS)["params"]
    return jax.tree.map(lambda x: x + jnp.asarray(0.2 * RNG.standard_normal(x.shape), jnp.float32), params)


def outputs_and_gradients(params, **options):
    """Scores, boxes and raw numbers of all cells in a row, and gradients of their products with fixed noise."""
    rng = np.random.default_rng(1)
    noise = [jnp.asarray(rng.standard_normal((2, sum(h * w for h, w in SHAPES), n)), jnp.float32) for n in (3, 4, 4)]

    def loss(params, levels):
        maps = zip(*THead(**OPTIONS, **options).apply({"params": params}, levels), strict=True)
        rows = [jnp.concatenate([x.reshape(2, -1, x.shape[-1]) for x in one], axis=1) for one in list(maps)[:3]]
        return sum((a * b).sum() for a, b in zip(rows, noise, strict=True)), rows

    return jax.device_get(jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, LEVELS))


@pytest.fixture(scope="module")
def plain(params):
    return outputs_and_gradients(params)


@pytest.mark.parametrize("options", [
    {"packed": True}, {"packed": True, "scan": True, "remat": True}, {"remat": True}
])  # fmt: skip
def test_equals_the_plain_head(params, plain, options):
    ours = outputs_and_gradients(params, **options)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(plain[0]))
    for (path, a), (_, b) in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves_with_path(ours), strict=True):
        limit = 1e-5 * np.abs(a).max() + 1e-6 * largest
        assert np.abs(a - b).max() <= limit, jax.tree_util.keystr(path)


def test_deformable_layers_stay_within_their_level(params):
    """Far offsets: a deformable layer reads zeros where its level ends, not the neighbouring levels."""
    options = {**OPTIONS, "deformable_convs": 1}
    head = THead(**options)
    shapes = jax.eval_shape(head.init, jax.random.key(0), LEVELS)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), shapes)

    def scores(**more):
        maps = jax.jit(lambda p: THead(**options, **more).apply({"params": p}, LEVELS))(params)
        return np.concatenate([np.asarray(one.scores).reshape(2, -1, 3) for one in maps], axis=1)

    np.testing.assert_allclose(scores(packed=True), scores(), atol=2e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_of_any_size_stay_within_their_level(size, stride):
    """Two in a row, with a bias between them that fills the gaps, and of a size that reaches beyond a gap."""
    layers = [conv(16, size, name=f"conv_{i}", dtype=jnp.float32, bias=True, stride=stride) for i in range(2)]
    ones = nn.initializers.ones

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, levels, packed):
            bound = [layer.clone(parent=self, name=layer.name, bias_init=ones) for layer in layers]
            if not packed:
                return tuple(bound[1](jnp.exp(bound[0](x))) for x in levels)
            return LevelMaps.join(levels).convolve(bound[0]).map(jnp.exp).convolve(bound[1]).levels()

    variables = Twice().init(jax.random.key(0), LEVELS, False)
    apart, together = (jax.jit(Twice().apply, static_argnums=2)(variables, LEVELS, packed) for packed in (False, True))
    for expected, found in zip(apart, together, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
