"""Small COCO directories made on the spot."""

import json
import shutil

import cv2
import numpy as np
import pytest

from tood_jax.config import DataConfig, SplitConfig
from tood_jax.data.coco import load_coco
from tood_jax.data.pipeline import train_batches
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.types import Batch

SETTINGS = {"batch_size": 4, "seed": 5, "start_step": 0, "num_steps": 8}  # an epoch has 5 steps


def picture(height, width, seed=0):
    """A smooth [height, width, 3] uint8 RGB picture."""
    grid = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.fixture
def coco(tmp_path):
    """Writes an annotation file (a tree, or bytes as they are) beside a folder with a.png and b.png; returns its split.

    a.png is 40 wide and 30 high, b.png 20 wide and 50 high.
    """

    def write(content):
        folder = tmp_path / "images"
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        for name, height, width in (("a.png", 30, 40), ("b.png", 50, 20), ("deep/c.png", 10, 10)):
            cv2.imwrite(str(folder / name), picture(height, width))
        file = tmp_path / "instances.json"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return SplitConfig(str(folder), str(file))

    return write


@pytest.fixture
def tree():
    """A sound annotation tree for `coco`, to be damaged."""
    return {
        "images": [
            {"id": 9_007_199_254_740_993, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "b.png", "width": 20, "height": 50},
        ],
        "annotations": [
            {
                "id": 5,
                "image_id": 9_007_199_254_740_993,
                "category_id": 90,
                "bbox": [1, 2, 10, 20],
                "area": 77,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 90, "name": "late"}, {"id": 3, "name": "early"}],
    }


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """23 generated images of many sizes, as a split."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, ShapesConfig(23, 2, height=(64, 110), width=(64, 110), seed=7, empty_share=0.2))
    return SplitConfig(str(folder / "train"), str(folder / "annotations/instances_train.json"))


@pytest.fixture(scope="session")
def shapes_set(shapes):
    return load_coco(shapes)


@pytest.fixture(scope="session")
def data_config():
    """Three buckets, two scales, both flips: whatever can differ between images does."""
    return DataConfig(
        train_short_side=(48, 64),
        eval_short_side=56,
        max_long_side=96,
        buckets=((64, 64), (64, 96), (96, 64)),
        flip_probability=0.5,
        vertical_flip_probability=0.3,
        max_objects=6,
    )


def take(stream):
    batches = list(stream)
    stream.close()
    return batches


def assert_equal(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        for name, a, b in zip(Batch._fields, one, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert a.dtype == b.dtype


@pytest.fixture(scope="session")
def batches(shapes_set, data_config):
    return take(train_batches(shapes_set, data_config, **SETTINGS))


@pytest.fixture
def damaged(shapes, tmp_path):
    """A copy of the generated set, the records of which can be broken: (set, function that breaks record i)."""
    folder = tmp_path / "train"
    shutil.copytree(shapes.images, folder)
    dataset = load_coco(SplitConfig(str(folder), shapes.annotations))

    def damage(*positions):
        for position in positions:
            file = dataset.images[position].path
            file.write_bytes(file.read_bytes()[:-400])

    return dataset, damage
