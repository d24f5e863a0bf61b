"""The PyTorch reference on single operations of mmdetection (ops.npz), and the networks that it refuses."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.tools.compare_torch.test_against_goldens import OPS
from tood_jax.config import Config
from tood_jax.config.conversion import ConfigError
from tood_jax.tools.compare_torch.torch_implementation import architecture_of
from tood_jax.tools.compare_torch.torch_reference.assigners import Objects, assign_atss, assign_task_aligned
from tood_jax.tools.compare_torch.torch_reference.boxes import giou, iou, locations_in_image, locations_of
from tood_jax.tools.compare_torch.torch_reference.detect import detect
from tood_jax.tools.compare_torch.torch_reference.losses import focal_loss, quality_focal_loss

pytestmark = pytest.mark.torch


def tensor(name):
    return torch.from_numpy(OPS[name])


LOCATIONS = locations_of([tuple(map(int, shape)) for shape in OPS["level_sizes"]], torch.zeros(()))
OBJECTS = Objects(tensor("gt_boxes"), tensor("gt_labels"))
ALL = torch.ones(len(LOCATIONS.points), dtype=torch.bool)


def test_overlaps():
    boxes = tensor("pred_boxes")
    np.testing.assert_allclose(iou(boxes[:, None], OBJECTS.boxes), OPS["iou"], atol=1e-6)
    np.testing.assert_allclose(giou(boxes, tensor("giou_target")), OPS["giou_aligned"], atol=1e-6)


@pytest.mark.parametrize(("topk", "alpha", "beta"), [(13, 1, 6), (9, 0.5, 2), (5, 1, 6)])
def test_task_aligned_assignment(topk, alpha, beta):
    assignment = assign_task_aligned(
        tensor("pred_scores"), tensor("pred_boxes"), LOCATIONS, ALL, OBJECTS, topk=topk, alpha=alpha, beta=beta
    )
    expected = OPS[f"tal_m{topk}_a{alpha}_b{beta}.gt_index_1based"] - 1
    np.testing.assert_array_equal(assignment.gt_index, expected)
    assert ((assignment.soft_label > 0) == (assignment.gt_index >= 0)).all()
    for i in set(expected[expected >= 0]):  # each object's largest t̂ is its largest IoU
        own = expected == i
        np.testing.assert_allclose(
            assignment.soft_label[own].max(), OPS[f"tal_m{topk}_a{alpha}_b{beta}.iou"][own].max(), rtol=1e-2
        )


def test_atss_assignment():
    np.testing.assert_array_equal(assign_atss(LOCATIONS, ALL, OBJECTS).gt_index, OPS["atss.gt_index_1based"] - 1)


def test_classification_losses():
    prob, label, soft = tensor("loss.prob"), tensor("loss.label_7_is_background"), tensor("loss.soft")
    one_hot = torch.nn.functional.one_hot(label, 8)[:, :7].float()
    np.testing.assert_allclose(focal_loss(prob, one_hot), OPS["loss.focal"], atol=1e-6)
    loss = quality_focal_loss(prob, one_hot * soft[:, None]).sum(dim=1)
    np.testing.assert_allclose(loss, OPS["loss.qfl"], atol=1e-5)


def test_locations_outside_an_image_are_neither_assigned_nor_detected():
    valid = locations_in_image(LOCATIONS, 100, 100)  # of 192×256; padded to 128×128
    assert valid.sum() == 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1
    scores, boxes = tensor("pred_scores"), tensor("pred_boxes")
    for assignment in (
        assign_atss(LOCATIONS, valid, OBJECTS),
        assign_task_aligned(scores, boxes, LOCATIONS, valid, OBJECTS),
    ):
        assert (assignment.gt_index >= 0).any()
        assert (assignment.gt_index[~valid] == -1).all()
    found = detect(
        torch.where(valid[:, None], 0.0, 0.9), boxes / LOCATIONS.strides[:, None], LOCATIONS, valid, (1.0, 1.0)
    )
    assert len(found.scores) == 0


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("backbone", {"norm": "group"}, "backbone.norm = 'group' (TOOD: 'frozen_batch')"),
        ("head", {"kind": "parallel"}, "head.kind = 'parallel' (TOOD: 't_head')"),
        ("backbone", {"depth": 18}, "backbone.depth = 18 (50 or 101)"),
        ("head", {"box_coding": "binned_distances"}, "head.box_coding = 'binned_distances'"),
        ("detect", {"clip_boxes": True}, "detect.clip_boxes = True (TOOD: False)"),
    ],
)
def test_the_error_for_another_network_names_the_field(group, change, message):
    config = Config()
    config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **change)})
    with pytest.raises(ConfigError) as error:
        architecture_of(config)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
