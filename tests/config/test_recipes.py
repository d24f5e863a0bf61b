"""The rivals' configs have the values of mmdetection 3.3.0 (OTA: of its authors); reports/2026-11/recipe.md compares.

TOOD's seven are in tests/config/test_configs.py.
"""

import dataclasses
from pathlib import Path

import pytest

from tood_jax.config.files import load_config
from tood_jax.config.presets import tood_r50_fpn_1x_coco

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "rivals"
ANCHOR = {"head.box_coding": "anchor_deltas", "head.anchor_octaves": 1, "head.anchor_ratios": (1.0,)}
FOCAL = {
    "loss.cls": "focal",
    "loss.cls_target": "one",
    "loss.focal_alpha": 0.25,
    "loss.focal_gamma": 2.0,
}
GIOU = {"loss.box": "giou"}
RECIPES = {
    "atss": {
        **ANCHOR, **FOCAL, **GIOU,
        "neck.extra_levels": "on_output", "head.norm": "group", "head.quality": "centerness",
        "head.anchor_scale": 8.0, "head.delta_stds": (0.1, 0.1, 0.2, 0.2), "head.level_scales": True,
        "assigner.kind": "atss", "assigner.atss_topk": 9,
        "loss.normalizer": "positives_per_image", "loss.box_weight": "centerness", "loss.box_loss_weight": 2.0,
        "loss.quality_loss_weight": 1.0, "detect.nms_iou": 0.6, "detect.quality_fusion": "product",
    },
    "retinanet": {
        **FOCAL,
        "neck.extra_levels": "on_input", "neck.relu_before_p7": False, "head.norm": "none", "head.quality": "none",
        "head.box_coding": "anchor_deltas", "head.anchor_scale": 4.0, "head.anchor_octaves": 3,
        "head.anchor_ratios": (0.5, 1.0, 2.0), "head.delta_stds": (1.0, 1.0, 1.0, 1.0), "head.level_scales": False,
        "assigner.kind": "max_iou", "assigner.positive_iou": 0.5, "assigner.negative_iou": 0.4,
        "loss.normalizer": "positives_per_image", "loss.box": "l1", "loss.box_weight": "one",
        "loss.box_loss_weight": 1.0, "detect.nms_iou": 0.5,
    },
    "fcos": {
        **FOCAL, **GIOU,
        "neck.extra_levels": "on_output", "neck.relu_before_p7": True, "head.norm": "group",
        "head.quality": "centerness", "head.box_coding": "relu_distances", "head.point_offset": 0.5,
        "head.tower_bias": True, "head.level_scales": True,
        "assigner.kind": "center_sampling", "assigner.center_radius": 1.5,
        "loss.normalizer": "positives", "loss.box_weight": "centerness", "loss.box_loss_weight": 1.0,
        "loss.quality_loss_weight": 1.0, "detect.nms_iou": 0.6, "detect.quality_fusion": "product",
        "optimizer.warmup_factor": 1 / 3,
    },
    "fovea": {
        "neck.extra_levels": "on_input", "neck.relu_before_p7": False, "head.norm": "none", "head.quality": "none",
        "head.box_coding": "exp_distances", "head.distance_unit": 2.0, "head.point_offset": 0.5,
        "assigner.kind": "fovea",
        "loss.cls": "focal", "loss.focal_alpha": 0.4, "loss.focal_gamma": 1.5,
        "loss.normalizer": "positives_and_images", "loss.box": "smooth_l1", "loss.box_weight": "one",
        "loss.box_loss_weight": 1.0, "detect.nms_iou": 0.5, "detect.clip_margin": 1.0,
    },
    "gfl": {
        **GIOU,
        "neck.extra_levels": "on_output", "head.norm": "group", "head.quality": "none",
        "head.box_coding": "binned_distances", "head.distance_bins": 16, "head.anchor_scale": 8.0,
        "assigner.kind": "atss", "assigner.atss_topk": 9,
        "loss.cls": "quality_focal", "loss.cls_target": "iou", "loss.focal_gamma": 2.0,
        "loss.normalizer": "positives_per_image", "loss.box_weight": "score", "loss.box_loss_weight": 2.0,
        "loss.distribution_loss_weight": 0.25, "detect.nms_iou": 0.6,
    },
    "paa": {
        **ANCHOR, **FOCAL, **GIOU,
        "neck.extra_levels": "on_output", "head.norm": "group", "head.quality": "iou",
        "head.anchor_scale": 8.0, "head.delta_stds": (0.1, 0.1, 0.2, 0.2),
        "assigner.kind": "paa", "assigner.atss_topk": 9, "assigner.positive_iou": 0.1, "assigner.negative_iou": 0.1,
        "loss.normalizer": "positives", "loss.box_weight": "iou", "loss.box_loss_weight": 1.3,
        "loss.quality_loss_weight": 0.5, "detect.nms_iou": 0.6, "detect.quality_fusion": "geometric_mean",
        "detect.score_voting": True,
    },
    "ota": {
        **FOCAL, **GIOU,
        "neck.extra_levels": "on_output", "head.norm": "group", "head.quality": "iou",
        "head.box_coding": "relu_distances", "head.point_offset": 0.5, "head.tower_bias": True,
        "assigner.kind": "ota", "assigner.center_radius": 2.5,
        "loss.normalizer": "positives", "loss.box_weight": "iou", "loss.box_loss_weight": 2.0,
        "loss.quality_loss_weight": 0.5, "detect.nms_iou": 0.6, "detect.quality_fusion": "geometric_mean",
        "detect.score_voting": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_rival_has_the_published_values(name):
    config = load_config(str(FOLDER / f"{name}_r50_fpn_1x_coco.py"))
    plain = dataclasses.asdict(config)
    found = {field: plain[field.split(".")[0]][field.split(".")[1]] for field in RECIPES[name]}
    assert found == RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_rival_trains_and_is_tested_as_tood_but_for_what_its_file_says(name):
    """Data, backbone, schedule, batch and post-processing are mmdetection's common base of all of them."""
    config, base = load_config(str(FOLDER / f"{name}_r50_fpn_1x_coco.py")), tood_r50_fpn_1x_coco()
    assert (config.backbone, config.data, config.train) == (base.backbone, base.data, base.train)
    warmup_factor = RECIPES[name].get("optimizer.warmup_factor", 0.001)
    assert config.optimizer == dataclasses.replace(base.optimizer, warmup_factor=warmup_factor)
    head, detect = config.head, config.detect
    assert (head.kind, head.channels, head.num_convs, head.norm_groups) == ("parallel", 256, 4, 32)
    assert (head.alignment, head.deformable_convs) == (False, 0)
    assert (detect.score_threshold, detect.candidates_per_level, detect.max_detections) == (0.05, 1000, 100)
    assert detect.clip_boxes
