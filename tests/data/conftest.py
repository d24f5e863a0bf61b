"""Small data sets, generated for each test or session."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
from etils.epath import backend
from fsspec.registry import _registry as registry

from tests.data.helpers import SETTINGS, smooth_image, take_all
from tests.data.object_store import FakeStore
from tood_jax.config import DataConfig, SplitConfig
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.loader import train_batches
from tood_jax.data.synthetic import ShapesConfig, write_shapes


@pytest.fixture
def write_coco(tmp_path):
    """Function that writes an annotation file (as JSON, or bytes unchanged) and its images, and returns the split.

    The folder of the images has a.png of 40 × 30 pixels, b.png of 20 × 50 and deep/c.png of 10 × 10.
    """

    def write(content):
        folder = tmp_path / "images"
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        for name, height, width in (("a.png", 30, 40), ("b.png", 50, 20), ("deep/c.png", 10, 10)):
            cv2.imwrite(str(folder / name), smooth_image(height, width))
        file = tmp_path / "instances.json"
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return SplitConfig(str(folder), str(file))

    return write


@pytest.fixture
def tree():
    """The valid content of an annotation file for `write_coco`."""
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
    """A split of 23 generated images of many sizes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, ShapesConfig(23, 2, height=(64, 110), width=(64, 110), seed=7, empty_share=0.2))
    return SplitConfig(str(folder / "train"), str(folder / "annotations/instances_train.json"))


@pytest.fixture(scope="session")
def shapes_set(shapes):
    """The data set of `shapes`."""
    return load_coco(shapes)


@pytest.fixture(scope="session")
def data_config():
    """Three buckets, a range of scales and both flips: everything that may differ between images."""
    return DataConfig(
        train_short_side=(48, 64),
        eval_short_side=56,
        max_long_side=96,
        buckets=((64, 64), (64, 96), (96, 64)),
        flip_probability=0.5,
        vertical_flip_probability=0.3,
        max_objects=6,
    )


@pytest.fixture(scope="session")
def batches(shapes_set, data_config):
    """The first training batches of `shapes`."""
    return take_all(train_batches(shapes_set, data_config, **SETTINGS))


@pytest.fixture
def breakable(shapes, tmp_path):
    """A copy of `shapes`, and a function that truncates the images at given positions."""
    folder = tmp_path / "train"
    shutil.copytree(shapes.images, folder)
    dataset = load_coco(SplitConfig(str(folder), shapes.annotations))

    def truncate(*positions):
        for position in positions:
            file = dataset.images[position].path
            file.write_bytes(file.read_bytes()[:-400])

    return dataset, truncate


@pytest.fixture
def store(monkeypatch, tmp_path):
    """Function that copies a file or folder to gs://bucket/NAME, which lies in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(registry, "gcs", FakeStore)
    monkeypatch.setitem(registry, "gs", FakeStore)
    backend.fsspec_backend._get_filesystem.cache_clear()
    system = FakeStore()

    def put(source, name):
        source = Path(source)
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        for file in files:
            inside = "" if source.is_file() else f"/{file.relative_to(source)}"
            system.pipe_file(f"gs://bucket/{name}{inside}", file.read_bytes())

    yield put
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    backend.fsspec_backend._get_filesystem.cache_clear()
