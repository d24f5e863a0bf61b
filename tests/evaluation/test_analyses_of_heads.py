"""The analyses of whole batches with a quality branch and several anchors per location agree with the detections."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.evaluation.plain_boxes import boxes_around, plain_matches
from tests.tiny import random_batch, tiny_config
from tood_jax.config import DetectConfig, HeadConfig
from tood_jax.evaluation.alignment import measure_alignment
from tood_jax.evaluation.missed import FOUND, Setting, count_found, diagnose
from tood_jax.models.detector import canvas_pyramid, detections
from tood_jax.types import Predictions


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["product", "geometric_mean"])
def test_found_objects_are_those_that_detections_match(tmp_path, fusion):
    head = HeadConfig(kind="parallel", alignment=False, box_coding="anchor_deltas", anchor_octaves=2, quality="iou")
    detect = DetectConfig(score_threshold=0.3, max_detections=40, clip_boxes=True, quality_fusion=fusion, nms_iou=0.5)
    config = dataclasses.replace(tiny_config(tmp_path, tmp_path), head=head, detect=detect)
    batch, rng = random_batch(3, max_objects=6), np.random.default_rng(5)
    batch = batch._replace(scales=np.full((3, 2), (0.5, 0.8), np.float32))
    pyramid = canvas_pyramid(batch, 2)
    count = len(pyramid.points)
    boxes = np.stack([boxes_around(rng, objects, count, 3) for objects in batch.gt_boxes])
    pred = Predictions(
        rng.random((3, count, 4), np.float32),
        boxes / pyramid.strides[:, None],
        quality=rng.normal(0, 2, (3, count)).astype(np.float32),
    )

    def analyze(pred, batch):
        setting = Setting(*(jax.numpy.asarray([x]) for x in (0.3, 0.5, 1000)))
        return (
            detections(pred, batch, config),
            diagnose(pred, batch, config),
            measure_alignment(pred, batch, config),
            count_found(pred, batch, setting, config),
        )

    found, fates, measured, (recalled, detected) = jax.device_get(jax.jit(analyze)(pred, batch))
    objects = batch.gt_boxes / np.tile(batch.scales[:, None, ::-1], 2)
    for i in range(3):
        mask, real = batch.gt_mask[i], found.labels[i] >= 0
        boxes, labels = found.boxes[i][real], found.labels[i][real]
        matched = plain_matches(boxes, labels, objects[i][mask], batch.gt_labels[i][mask], 0.5)
        expected = {m for m in matched if m >= 0}
        assert set(np.flatnonzero(fates.cause[i] == FOUND)) == expected
        assert (fates.cause[i][~mask] == -1).all()
        assert (fates.cause[i][mask] >= 0).all()
        assert measured.correct[i] == recalled[i, 0] == len(expected)
        assert detected[i, 0] == real.sum()
    assert recalled.sum() > 0
