"""The backbone scanned, rematerialised, with folded norms: the same numbers and gradients of the same parameters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.models.layers import Norm, conv, conv_and_norm, folded_norm
from tood_jax.models.resnet import ResNet

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((1, 32, 32, 3)), jnp.float32)
OPTIONS = {"depth": 50, "width": 8, "frozen_stages": 1}


def filled(shapes):
    """Kernels that keep the scale of what passes, and norms that do something."""

    def fill(path, leaf):
        noise = RNG.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.prod(leaf.shape[:-1]) ** -0.5
        return {"var": 1 + noise**2, "scale": 1 + 0.3 * noise}.get(name, 0.3 * noise)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def variables_of_resnet():
    return filled(jax.eval_shape(ResNet(**OPTIONS).init, jax.random.key(0), IMAGES))


def maps_and_gradients(**options):
    variables = variables_of_resnet()

    def loss(params):
        maps = ResNet(**OPTIONS, **options).apply({**variables, "params": params}, IMAGES, True)
        return sum((x * jnp.cos(jnp.arange(x.size).reshape(x.shape))).sum() for x in maps), maps

    return jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))


@pytest.fixture(scope="module")
def plain():
    return maps_and_gradients()


@pytest.mark.parametrize("options", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True}])
def test_equals_the_plain_backbone(plain, options):
    found = maps_and_gradients(**options)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(plain[0]))
    for (path, theirs), ours in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(found), strict=True):
        limit = 1e-5 * np.abs(theirs).max() + 1e-6 * largest
        assert np.abs(ours - theirs).max() <= limit, jax.tree_util.keystr(path)


def test_a_scan_is_one_loop_a_stage():
    """Three blocks that equal each other in stage 2, five in stage 3, two each in stages 1 and 4."""
    program = str(jax.make_jaxpr(ResNet(**OPTIONS, scan=True).apply)(variables_of_resnet(), IMAGES))
    assert [f"length={length}" in program for length in (2, 3, 5)] == [True] * 3


def test_batch_statistics_are_never_scanned():
    options = {**OPTIONS, "frozen_stages": -1, "norm": "batch", "scan": True}
    shapes = jax.eval_shape(ResNet(**options).init, jax.random.key(0), IMAGES)
    _, updated = jax.eval_shape(
        lambda v: ResNet(**options).apply(v, IMAGES, True, mutable=["batch_stats"]), dict(shapes)
    )
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(shapes["batch_stats"])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_folded_norm_equals_convolution_and_norm(groups):
    class Pair(nn.Module):
        folded: bool

        @nn.compact
        def __call__(self, x):
            layer = conv(6, 3, name="conv", dtype=jnp.float32, groups=groups, stride=2)
            norm = Norm("frozen_batch", name="norm")
            if self.folded and not self.is_initializing():
                return folded_norm(layer, norm, x)
            return norm(layer(x))

    x = jnp.asarray(RNG.standard_normal((2, 9, 8, 4)), jnp.float32)
    variables = filled(jax.eval_shape(Pair(False).init, jax.random.key(0), x))
    assert jax.tree.structure(jax.eval_shape(Pair(True).init, jax.random.key(0), x)) == jax.tree.structure(variables)

    def gradients(folded):
        def loss(params, x):
            y = Pair(folded).apply({**variables, "params": params}, x)
            return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], x)

    for theirs, ours in zip(*(jax.tree.leaves(gradients(folded)) for folded in (False, True)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_bfloat16_folds(dtype):
    """float32 is compared with the published code, which doesn't."""

    class Pair(nn.Module):
        way: str

        @nn.compact
        def __call__(self, x):
            layer, norm = conv(6, 3, name="conv", dtype=dtype), Norm("frozen_batch", dtype=dtype, name="norm")
            if self.way == "chosen" or self.is_initializing():
                return conv_and_norm(layer, norm, x)
            return folded_norm(layer, norm, x) if self.way == "folded" else norm(layer(x))

    x = jnp.asarray(RNG.standard_normal((1, 9, 8, 4)), dtype)
    variables = filled(jax.eval_shape(Pair("chosen").init, jax.random.key(0), x))
    chosen, folded, apart = (Pair(way).apply(variables, x) for way in ("chosen", "folded", "apart"))
    same, other = (folded, apart) if dtype == jnp.bfloat16 else (apart, folded)
    np.testing.assert_array_equal(chosen, same)
    assert (chosen != other).any()
