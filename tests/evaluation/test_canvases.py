"""Images evaluated one at a time, each padded to a multiple of 32, and in batches on a large canvas: the same."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models.random_variables import random_variables
from tood_jax.config import BackboneConfig, Config, DataConfig, DetectConfig, HeadConfig, NeckConfig, SplitConfig
from tood_jax.data.load_dataset import load_dataset
from tood_jax.distributed.sharding import make_mesh
from tood_jax.evaluation.evaluate import evaluate_set
from tood_jax.evaluation.predict import compile_detect_step
from tood_jax.models.build import build_model

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco355"


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco355")
def test_coco_in_batches_and_one_at_a_time():
    """Photographs of COCO in all proportions, as mmdetection tests them and as we do.

    The network is random, so that AP says little: all detections are compared.
    """
    sides = range(32, 224, 32)
    data = DataConfig(
        val=SplitConfig(str(COCO / "val"), str(COCO / "annotations/instances_val.json")),
        eval_short_side=96,
        max_long_side=160,
        buckets=((160, 160),),
    )
    config = Config(
        backbone=BackboneConfig(depth=18, width=8, frozen_stages=-1),
        neck=NeckConfig(channels=16),
        head=HeadConfig(channels=16, num_convs=2, norm_groups=4),
        data=data,
        detect=DetectConfig(score_threshold=0.3, max_detections=20),
    )
    dataset = load_dataset(data.val)
    images = dataset.images[:64]
    ids = {image.id for image in images}
    annotations = tuple(one for one in dataset.annotations if one["image_id"] in ids)
    dataset = dataclasses.replace(dataset, images=images, annotations=annotations)
    mesh = make_mesh(jax.devices()[:1])
    model = build_model(config, len(dataset.classes), "cpu")
    variables = random_variables(model)
    step = compile_detect_step(model, config, mesh)

    def run(batch_size, buckets):
        given = dataclasses.replace(data, buckets=tuple(buckets))
        return evaluate_set(step, variables["params"], variables["batch_stats"], dataset, given, batch_size, mesh)

    alone = run(1, itertools.product(sides, sides))  # the smallest canvas that holds an image is its padded size
    batches = run(8, [(160, 160)])
    assert pytest.approx(alone.metrics.AP, abs=5e-4) == batches.metrics.AP
    of_image = {image.image_index: image for image in alone.detections}
    assert len(of_image) == len(dataset.images) == len(batches.detections)
    assert sum(len(image.boxes) for image in alone.detections) > 100
    for image in batches.detections:
        expected = of_image[image.image_index]
        np.testing.assert_allclose(image.scores, expected.scores, atol=1e-5)
        distinct = np.diff(expected.scores, append=-1) < -1e-5  # others may change places
        distinct &= np.diff(expected.scores, prepend=2) < -1e-5
        np.testing.assert_array_equal(image.labels[distinct], expected.labels[distinct])
        np.testing.assert_allclose(image.boxes[distinct], expected.boxes[distinct], atol=0.05)
