"""Backbones: shapes of all depths, frozen stages, trained batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.networks.resnet import ResNet, out_channels


@pytest.mark.parametrize(
    ("options", "count"),
    [  # parameters of torchvision's networks without their classifier
        ({"depth": 18}, 11_176_512),
        ({"depth": 34}, 21_284_672),
        ({"depth": 50}, 23_508_032),
        ({"depth": 101}, 42_500_160),
        ({"depth": 101, "groups": 64, "width_per_group": 4}, 81_406_272),
    ],
)
def test_shapes_and_parameter_counts(options, count):
    network = ResNet(**options)
    image = jax.ShapeDtypeStruct((2, 97, 130, 3), jnp.float32)
    maps, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
    sizes = [(25, 33), (13, 17), (7, 9), (4, 5)]
    channels = out_channels(options["depth"], 64)
    assert [m.shape for m in maps] == [(2, *size, c) for size, c in zip(sizes, channels, strict=True)]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_out_channels():
    assert out_channels(18, 64) == (64, 128, 256, 512)
    assert out_channels(101, 16) == (64, 128, 256, 512)


@pytest.mark.parametrize("frozen_stages", [-1, 1, 4])
def test_no_gradient_reaches_frozen_stages(frozen_stages):
    network = ResNet(depth=18, width=4, frozen_stages=frozen_stages)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 3)), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), image)

    @jax.jit
    @jax.grad
    def gradient(params):
        # sin: a plain sum would not show each parameter
        return sum(jnp.sin(m + 0.1).sum() for m in network.apply({**variables, "params": params}, image, train=True))

    nudged = jax.tree.map(lambda p: p + 0.01, variables["params"])  # residual branches start as nothing
    for name, gradients in gradient(nudged).items():
        stage = int(name[len("layer")]) if name.startswith("layer") else 0
        for leaf in jax.tree.leaves(gradients):
            assert bool(jnp.any(leaf != 0)) == (stage > frozen_stages), name


def test_batch_norm_trains_where_the_stage_does():
    network = ResNet(depth=18, width=4, norm="batch", frozen_stages=1)
    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3)), jnp.float32)
    variables = jax.jit(network.init)(jax.random.key(0), image)
    _, updated = jax.jit(lambda v: network.apply(v, image, train=True, mutable=["batch_stats"]))(variables)
    for name, statistics in updated["batch_stats"].items():
        moves = name[:6] in ("layer2", "layer3", "layer4")
        before = variables["batch_stats"][name]
        same = jax.tree.map(np.array_equal, statistics, before)
        assert not any(jax.tree.leaves(same)) if moves else all(jax.tree.leaves(same)), name
