"""The parallel head: shapes, anchors per location, branches, and the explicit alignment on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.geometry.box_coder import BoxCoder
from tood_jax.models.parallel_head import ParallelHead
from tood_jax.models.t_head import THead

OPTIONS = {"num_classes": 3, "channels": 16, "num_convs": 2, "norm_groups": 4}
RNG = np.random.default_rng(0)
LEVELS = tuple(jnp.asarray(RNG.standard_normal((2, s, s + 1, 16)), jnp.float32) for s in (8, 4, 3, 2, 1))
HEADS = {
    "retinanet": ParallelHead(
        **OPTIONS, norm="none", tower_bias=True, level_scales=False,
        box_coder=BoxCoder("anchor_deltas", anchor_octaves=3, anchor_ratios=(0.5, 1.0, 2.0)),
    ),
    "fcos": ParallelHead(**OPTIONS, tower_bias=True, quality=True, box_coder=BoxCoder("relu_distances")),
    "gfl": ParallelHead(**OPTIONS, box_coder=BoxCoder("binned_distances", bins=5)),
    "aligned": ParallelHead(**OPTIONS, alignment=True),
    "t_head": THead(**OPTIONS, quality=True, box_coder=BoxCoder("relu_distances", point_offset=0.5)),
}  # fmt: skip


@pytest.fixture(scope="module", params=HEADS)
def run(request):
    head = HEADS[request.param]
    variables = jax.jit(head.init)(jax.random.key(0), LEVELS)
    return request.param, head, variables["params"], jax.jit(head.apply)(variables, LEVELS)


def test_shapes_and_prior(run):
    _, head, params, outputs = run
    count = head.box_coder.per_location
    for features, maps in zip(LEVELS, outputs, strict=True):
        rows = features.shape[0], features.shape[1] * features.shape[2]
        assert maps.scores.shape == (*rows, count * 3)
        assert maps.boxes.shape == (*rows, count * 4)
        assert maps.box_logits.shape == (*rows, count * head.box_coder.num_logits)
        assert (maps.quality is None) == (not head.quality)
        assert head.quality is False or maps.quality.shape == (*rows, count)
        np.testing.assert_allclose(maps.scores, 0.01, rtol=0.3)  # the prior
        assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(maps))
    assert ("scales" in params) == head.level_scales
    assert ("align" in params) == head.alignment


def test_boxes_are_decoded_from_the_logits(run):
    """Where nothing is sampled, the logits (already scaled) decode to the boxes."""
    name, head, _, outputs = run
    if head.alignment:
        return  # held by tests/models/test_t_head.py
    for features, maps in zip(LEVELS, outputs, strict=True):
        logits = maps.box_logits.reshape(*features.shape[:3], -1)
        boxes = head.box_coder.decode(logits).reshape(maps.boxes.shape)
        np.testing.assert_allclose(boxes, maps.boxes, atol=1e-5, err_msg=name)


def test_the_alignment_moves_sides(run):
    """Offsets of one row down for y1 make it grow by one cell, on the parallel head as on T-head."""
    name, head, params, _ = run
    if not head.alignment or head.quality:
        return
    still = jax.tree.map(jnp.zeros_like, params["reg_sides"])
    offsets = jax.tree.map(jnp.zeros_like, params["align"]["reg_alignment_1"])
    offsets["bias"] = jnp.zeros(8).at[6].set(1)
    moved = params | {"reg_sides": still, "align": params["align"] | {"reg_alignment_1": offsets}}
    boxes = jax.jit(head.apply)({"params": moved}, LEVELS)[0].boxes.reshape(2, 8, 9, 4)
    y, x = np.mgrid[:7, :9]
    expected = np.stack([x - 1, y - 1, x + 1, y + 2], -1)
    np.testing.assert_allclose(boxes[:, :-1], np.broadcast_to(expected, (2, 7, 9, 4)), atol=1e-5, err_msg=name)
