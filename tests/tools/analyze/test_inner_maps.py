"""P, M and the boxes before alignment, recorded inside the heads, give the head's own predictions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import random_batch, tiny_config
from tood_jax.api import TrainedModel
from tood_jax.config import HeadConfig
from tood_jax.models.build import build_model
from tood_jax.models.t_head import align_boxes
from tood_jax.tools.analyze.inner_maps import inner_maps
from tood_jax.tools.analyze.maps_figure import draw_maps
from tood_jax.training.state import init_variables


@pytest.mark.slow
@pytest.mark.parametrize("head", ["t_head", "parallel"])
def test_maps_compose_the_predictions(tmp_path, head):
    options = {"norm_groups": 4, "channels": 16, "num_convs": 1}
    if head == "parallel":  # without alignment, and with several anchors per location
        options |= {"alignment": False, "box_coding": "anchor_deltas", "anchor_octaves": 2, "quality": "iou"}
    config = dataclasses.replace(tiny_config(tmp_path, tmp_path), head=HeadConfig(kind=head, **options))
    if head == "parallel":
        config = dataclasses.replace(config, assigner=dataclasses.replace(config.assigner, kind="max_iou"))
    model = build_model(config, 4)
    batch = jax.tree.map(lambda x: x[:1], random_batch(2))
    maps = inner_maps(TrainedModel(model, *init_variables(model, seed=0), ()), config, batch)
    assert len(maps.cls) == len(maps.pyramid.points) == (172 if head == "parallel" else 86)
    if head == "t_head":
        np.testing.assert_allclose(np.sqrt(maps.cls * maps.alignment), maps.score, rtol=1e-5)
        strides = maps.pyramid.strides[:, None]
        offsets = jnp.asarray(maps.offsets / strides[..., None]).reshape(1, -1, 8)
        before = jnp.asarray(maps.boxes_before / strides)[None]
        sampled = align_boxes(before, offsets, maps.pyramid.shapes)[0] * strides
        np.testing.assert_allclose(sampled, maps.boxes, atol=1e-2)
    else:
        assert maps.alignment is None
        np.testing.assert_array_equal(maps.boxes_before, maps.boxes)
        assert (maps.score <= maps.cls).all()  # times the quality
    assert maps.assignment.gt_index.shape == maps.cls.shape
    if head == "parallel":
        return
    files = draw_maps(maps, batch, ("a", "b", "c", "d"), "title")
    assert files[".png"].startswith(b"\x89PNG")
    assert b"<svg" in files[".svg"][:1000]
    assert all(b"tood_jax analyze maps" in content[:65536] for content in files.values())
