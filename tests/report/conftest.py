"""A val split of drawn shapes, and detections of it that are partly wrong."""

import dataclasses

import numpy as np
import pytest

from tests.tiny import tiny_config
from tood_jax.data.dataset import ClassInfo
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.evaluation.coco_ap import evaluate
from tood_jax.evaluation.evaluate import Evaluation

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "=1+1,\n$\\frac{", "_é熊")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The val split, with hostile class names."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, ShapesConfig(train_images=1, val_images=24, height=(64, 64), width=(64, 64), seed=3))
    dataset = load_dataset(tiny_config(folder, folder / "run").data.val)
    classes = tuple(ClassInfo(info.id, name) for info, name in zip(dataset.classes, HOSTILE, strict=True))
    return dataclasses.replace(dataset, classes=classes)


@pytest.fixture(scope="session")
def evaluated(shapes):
    return evaluation_of(shapes, imperfect_results(shapes))


def imperfect_results(dataset):
    """Every object once, moved, some as another class, and a wrong detection in each image."""
    rng = np.random.default_rng(0)
    ids = [info.id for info in dataset.classes]
    results = []
    for one in dataset.ground_truth()["annotations"]:
        x, y, width, height = one["bbox"]
        category = one["category_id"] if rng.random() < 0.7 else ids[rng.integers(len(ids))]
        box = [x + rng.normal(0, 2), y + rng.normal(0, 2), width, height]
        results.append(
            {"image_id": one["image_id"], "category_id": category, "bbox": box, "score": rng.uniform(0.2, 1)}
        )
    for image in dataset.images:
        box = [*rng.uniform(0, 40, 2), 9.0, 9.0]
        results.append(
            {"image_id": image.id, "category_id": ids[0], "bbox": box, "score": float(rng.uniform(0.05, 0.7))}
        )
    return results


def evaluation_of(dataset, results, losses=None):
    return Evaluation(evaluate(dataset.ground_truth(), results), [], results, "", losses or {})
