"""A data set that TensorFlow Datasets prepared as coco/2017 is: the samples are those of the directory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from tests.data.helpers import assert_batches_equal, take_all
from tood_jax.config import SplitConfig
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.formats.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.data.formats.tfds import absolute_boxes, category_ids, load_tfds
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import eval_batches


def builder_of(annotations, images):
    """Return a builder class like that of TFDS's `coco/2017` for an instances JSON."""
    tree = json.loads(Path(annotations).read_text())
    names = {category["id"]: category["name"] for category in tree["categories"]}

    with skip_registration():  # the class is created more than once, and TFDS registers a name only once

        class Coco(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.1.0")

            def _info(self):
                objects = {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=list(names.values())),
                    "is_crowd": np.bool_,
                }
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(objects),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _):
                return {"validation": self._generate_examples()}

            def _generate_examples(self):
                for image in sorted(tree["images"], key=lambda image: image["id"]):
                    objects = [entry for entry in tree["annotations"] if entry["image_id"] == image["id"]]
                    yield (
                        image["file_name"],
                        {
                            "image": str(Path(images) / image["file_name"]),
                            "image/filename": image["file_name"],
                            "image/id": image["id"],
                            "objects": [self._object(entry, image) for entry in objects],
                        },
                    )

            def _object(self, annotation, image):
                x, y, width, height = annotation["bbox"]
                box = tfds.features.BBox(
                    ymin=y / image["height"],
                    xmin=x / image["width"],
                    ymax=(y + height) / image["height"],
                    xmax=(x + width) / image["width"],
                )
                return {
                    "id": annotation["id"],
                    "area": annotation["area"],
                    "bbox": box,
                    "label": names[annotation["category_id"]],
                    "is_crowd": bool(annotation["iscrowd"]),
                }

    return Coco


def prepare(annotations, images, folder):
    builder = builder_of(annotations, images)(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="session")
def with_crowd(shapes, tmp_path_factory):
    """`shapes` with COCO's eighty categories and one crowd."""
    tree = json.loads(Path(shapes.annotations).read_text())
    tree["annotations"][5]["iscrowd"] = 1
    tree["categories"] = [info._asdict() for info in COCO_CLASSES]
    for annotation in tree["annotations"]:
        annotation["category_id"] = {1: 1, 2: 13, 3: 50, 4: 90}[annotation["category_id"]]
    file = tmp_path_factory.mktemp("crowd") / "instances.json"
    file.write_text(json.dumps(tree))
    return replace(shapes, annotations=str(file))


@pytest.fixture(scope="session")
def prepared(with_crowd, tmp_path_factory):
    """The folder of `with_crowd` as TFDS prepares it."""
    return prepare(with_crowd.annotations, with_crowd.images, tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def split(prepared):
    return SplitConfig(tfds=str(prepared), tfds_split="validation")


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of `prepared` without index files."""
    folder = tmp_path / "1.1.0"
    shutil.copytree(prepared, folder, ignore=lambda _, names: [name for name in names if name.startswith(".")])
    return folder


def sort_like(dataset, other):
    """Return the data set with its images in the order of another one."""
    by_id = {image.id: image for image in dataset.images}
    return replace(dataset, images=tuple(by_id[image.id] for image in other.images))


def test_the_samples_are_those_of_the_directory(split, with_crowd, data_config):
    """Although boxes were stored as shares in float32: COCO's are multiples of 0.01 pixels."""
    shuffled, directory = load_dataset(split), load_coco(with_crowd)
    assert shuffled.classes == directory.classes
    assert [image.id for image in shuffled.images] != [image.id for image in directory.images]  # TFDS shuffles
    dataset = sort_like(shuffled, directory)
    assert dataset.fingerprint == directory.fingerprint
    for image, expected_image in zip(dataset.images, directory.images, strict=True):
        assert image.path.name == expected_image.path.name
        assert image.path.read_bytes() == expected_image.path.read_bytes()
    expected = take_all(eval_batches(directory, data_config, batch_size=4))
    assert_batches_equal(take_all(eval_batches(dataset, data_config, batch_size=4)), expected)
    assert_batches_equal(take_all(eval_batches(dataset, replace(data_config, workers=1), batch_size=4)), expected)


def test_the_ground_truth_is_that_of_the_directory_except_fractions_of_areas(split, with_crowd):
    def comparable(ground_truth):
        fields = ("image_id", "category_id", "bbox", "iscrowd")
        return sorted([*(entry[name] for name in fields), int(entry["area"])] for entry in ground_truth["annotations"])

    found, expected = load_dataset(split).ground_truth(), load_coco(with_crowd).ground_truth()
    assert comparable(found) == comparable(expected)
    assert sum(entry["iscrowd"] for entry in found["annotations"]) == 1
    assert found["categories"] == expected["categories"]
    assert sorted(map(str, found["images"])) == sorted(map(str, expected["images"]))


def test_a_part_of_a_split_can_be_loaded(split):
    assert len(load_dataset(replace(split, tfds_split="validation[:7]")).images) == 7
    assert len(load_dataset(replace(split, tfds_split="validation[50%:]")).images) == 11


def test_the_index_is_made_once_and_again_when_the_data_changes(copy):
    def index_files():
        return {file.name: file.stat().st_mtime_ns for file in copy.glob(".tood_jax_index_*.json")}

    first = load_tfds(str(copy), "validation")
    written = index_files()
    ((name, written_at),) = written.items()
    assert load_tfds(str(copy), "validation").ground_truth() == first.ground_truth()
    assert index_files() == written
    (copy / name).write_text((copy / name).read_text()[:-9])  # truncated
    os.utime(copy / name, ns=(1, 1))
    load_tfds(str(copy), "validation")
    assert index_files()[name] >= written_at
    os.utime(next(copy.glob("*.array_record*")), ns=(1, 1))
    load_tfds(str(copy), "validation")
    assert len(index_files()) == 2


def test_the_index_is_written_to_the_cache_if_the_folder_is_not_writable(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_tfds(str(copy), "validation")
    (index,) = copy.glob(".tood_jax_index_*.json")
    index.unlink()
    index.mkdir()  # root may write everywhere, but cannot replace a folder by a file
    load_tfds(str(copy), "validation")
    assert len(list((tmp_path / "cache/tood_jax/indices").glob("*.json"))) == 1


def test_a_damaged_record_is_named(copy):
    shard = next(copy.glob("*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 1
    data[len(data) // 2 - 3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"1\.1\.0: record \d+ can't be read \(RuntimeError"):
        load_tfds(str(copy), "validation")


def test_other_folders_are_refused_with_the_reason(prepared, tmp_path, monkeypatch):
    def expect_error(message, folder, split="validation"):
        with pytest.raises(DataError, match=message) as caught:
            load_tfds(str(folder), split)
        assert "\n" not in str(caught.value)

    expect_error(
        r"no dataset_info\.json in data\.\*\.tfds = .*none, which doesn't exist: name the folder", tmp_path / "none"
    )
    expect_error(r"no dataset_info\.json .* which holds no such file", prepared.parent)
    expect_error("has no split 'train': set data.*tfds_split to one of validation", prepared, "train")
    expect_error("has no split '': set", prepared, "")
    expect_error("has no split", prepared, "validation[:")
    folder = tmp_path / "1.1.0"
    folder.mkdir()
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text("{")
    expect_error(r"dataset_info\.json is not JSON", folder)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "features.json").write_text("{}")
    expect_error("can't be read as a data set of TFDS", folder)
    text = (prepared / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(text.replace('"array_record"', '"tfrecord"'))
    (folder / "features.json").write_text((prepared / "features.json").read_text())
    expect_error("was prepared as tfrecord, which needs TensorFlow to be read: prepare it with tfds build", folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    expect_error(
        r"needs TensorFlow Datasets \(not TensorFlow\), .*: pip install tensorflow-datasets importlib_res", prepared
    )


def test_a_data_set_in_a_store(store, prepared, split, with_crowd, tmp_path):
    store(prepared, "coco/2017/1.1.0")
    dataset = load_dataset(SplitConfig(tfds="gs://bucket/coco/2017/1.1.0", tfds_split="validation"))
    assert dataset.ground_truth() == load_dataset(split).ground_truth()
    assert list((tmp_path / "cache").rglob("*.array_record*"))


def test_only_cocos_names_get_cocos_ids():
    assert category_ids(COCO_NAMES) == [info.id for info in COCO_CLASSES]
    assert (category_ids(COCO_NAMES)[0], category_ids(COCO_NAMES)[79]) == (1, 90)
    assert category_ids(["a", "b"]) == [1, 2]


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 359), (51, 1333)])
def test_multiples_of_a_hundredth_pixel_are_restored_exactly(size):
    height, width = size
    rng = np.random.default_rng(height)
    corner = rng.integers(0, [100 * width - 1, 100 * height - 1], (5000, 2))
    sides = 1 + (rng.random((5000, 2)) * ([100 * width, 100 * height] - corner - 1)).astype(int)
    xywh = np.concatenate([corner, sides], axis=1) / 100
    x, y, w, h = xywh.T
    shares = np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=1).astype(np.float32)
    assert absolute_boxes(shares, height, width).tolist() == xywh.tolist()


def test_other_boxes_are_restored_within_the_precision_of_float32():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.5, (5000, 2))
    shares = np.concatenate([corner, corner + rng.uniform(0.01, 0.5, (5000, 2))], axis=1)
    y0, x0, y1, x1 = (shares * [480, 640, 480, 640]).T
    boxes = absolute_boxes(shares.astype(np.float32), 480, 640)
    np.testing.assert_allclose(boxes, np.stack([x0, y0, x1 - x0, y1 - y0], axis=1), atol=1.6e-4)
    assert absolute_boxes(np.zeros((0, 4)), 480, 640).shape == (0, 4)


def test_tensorflow_is_never_imported(split, data_config, tmp_path):
    """Not even if it is installed: the path contains a module of its name that ends the program."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    (tmp_path / "read.py").write_text(f"""
import sys
from tood_jax.config import *
import tood_jax.cli.train
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import train_batches
if __name__ == "__main__":
    dataset = load_dataset({split!r})
    for workers in (0, 1):
        data = {data_config!r}
        data = DataConfig(**{{**data.__dict__, "workers": workers}})
        iterator = train_batches(dataset, data, batch_size=4, seed=0, start_step=0, num_steps=2)
        print(sum(len(batch.images) for batch in iterator))
    sys.exit("tensorflow" in sys.modules)
""")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "read.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "8\n8\n"), done.stderr
