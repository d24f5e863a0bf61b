"""A data set that TensorFlow Datasets prepared in COCO's own features: the samples are those of the directory."""

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

from tests.data.conftest import assert_equal, take
from tests.data.test_paths import store  # noqa: F401 - a fixture
from tood_jax.config import SplitConfig
from tood_jax.data import tfds as module
from tood_jax.data.coco import load_coco
from tood_jax.data.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.data.errors import DataError
from tood_jax.data.pipeline import eval_batches
from tood_jax.data.sets import load_set
from tood_jax.data.tfds import absolute_boxes, category_ids, load_tfds


def builder_of(annotations, images):
    """The class of a builder as TFDS's `coco/2017` has it, of an instances JSON."""
    tree = json.loads(Path(annotations).read_text())
    names = {one["id"]: one["name"] for one in tree["categories"]}

    with skip_registration():  # the class is made more than once, and TFDS takes a name only once

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
                for image in sorted(tree["images"], key=lambda one: one["id"]):
                    own = [one for one in tree["annotations"] if one["image_id"] == image["id"]]
                    yield (
                        image["file_name"],
                        {
                            "image": str(Path(images) / image["file_name"]),
                            "image/filename": image["file_name"],
                            "image/id": image["id"],
                            "objects": [self._object(one, image) for one in own],
                        },
                    )

            def _object(self, one, image):
                x, y, width, height = one["bbox"]
                box = tfds.features.BBox(
                    ymin=y / image["height"],
                    xmin=x / image["width"],
                    ymax=(y + height) / image["height"],
                    xmax=(x + width) / image["width"],
                )
                return {
                    "id": one["id"],
                    "area": one["area"],
                    "bbox": box,
                    "label": names[one["category_id"]],
                    "is_crowd": bool(one["iscrowd"]),
                }

    return Coco


def prepare(annotations, images, folder):
    builder = builder_of(annotations, images)(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


@pytest.fixture(scope="session")
def with_crowd(shapes, tmp_path_factory):
    """The generated set under COCO's eighty categories, one box of it a crowd."""
    tree = json.loads(Path(shapes.annotations).read_text())
    tree["annotations"][5]["iscrowd"] = 1
    tree["categories"] = [one._asdict() for one in COCO_CLASSES]
    for one in tree["annotations"]:
        one["category_id"] = {1: 1, 2: 13, 3: 50, 4: 90}[one["category_id"]]
    file = tmp_path_factory.mktemp("crowd") / "instances.json"
    file.write_text(json.dumps(tree))
    return replace(shapes, annotations=str(file))


@pytest.fixture(scope="session")
def prepared(with_crowd, tmp_path_factory):
    return prepare(with_crowd.annotations, with_crowd.images, tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def split(prepared):
    return SplitConfig(tfds=str(prepared), tfds_split="validation")


def in_order_of(dataset, other):
    """The same set, its images in the order of another's."""
    by_id = {one.id: one for one in dataset.images}
    return replace(dataset, images=tuple(by_id[one.id] for one in other.images))


def test_the_samples_are_those_of_the_directory_bit_for_bit(split, with_crowd, data_config):
    """Although boxes went through shares in float32: COCO's are hundredths of a pixel."""
    found, directory = load_set(split), load_coco(with_crowd)
    assert found.classes == directory.classes
    assert [one.id for one in found.images] != [one.id for one in directory.images]  # TFDS shuffles
    found = in_order_of(found, directory)
    for one, other in zip(found.images, directory.images, strict=True):
        assert (one.id, one.path.name, one.height, one.width) == (other.id, other.path.name, other.height, other.width)
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.boxes.tobytes() == other.boxes.tobytes()
        assert one.labels.tobytes() == other.labels.tobytes()
    expected = take(eval_batches(directory, data_config, batch_size=4))
    assert_equal(take(eval_batches(found, data_config, batch_size=4)), expected)
    assert_equal(take(eval_batches(found, replace(data_config, workers=1), batch_size=4)), expected)


def test_the_ground_truth_is_that_of_the_directory_but_for_fractions_of_areas(split, with_crowd):
    def told(truth):
        return sorted(
            (one["image_id"], one["category_id"], one["bbox"], int(one["area"]), one["iscrowd"])
            for one in truth["annotations"]
        )

    found, directory = load_set(split).ground_truth(), load_coco(with_crowd).ground_truth()
    assert told(found) == told(directory)
    assert sum(one["iscrowd"] for one in found["annotations"]) == 1
    assert found["categories"] == directory["categories"]
    assert sorted(map(str, found["images"])) == sorted(map(str, directory["images"]))


def test_a_part_of_a_split(split):
    assert len(load_set(replace(split, tfds_split="validation[:7]")).images) == 7
    assert len(load_set(replace(split, tfds_split="validation[50%:]")).images) == 11


def test_the_index_is_made_once_and_again_when_the_data_changed(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "1.1.0"
    shutil.copytree(prepared, folder, ignore=lambda _, names: [one for one in names if one.startswith(".")])
    made, make = [], module._make_tree
    monkeypatch.setattr(module, "_make_tree", lambda *args: made.append(1) or make(*args))
    first = load_tfds(str(folder), "validation")
    again = load_tfds(str(folder), "validation")
    assert len(made) == 1
    assert again.ground_truth() == first.ground_truth()
    (index,) = folder.glob(".tood_jax_index_*.json")
    index.write_text(index.read_text()[:-9])  # torn
    load_tfds(str(folder), "validation")
    assert len(made) == 2
    os.utime(next(folder.glob("*.array_record*")), ns=(1, 1))
    load_tfds(str(folder), "validation")
    assert len(made) == 3


def test_where_the_folder_can_not_be_written_the_index_goes_to_the_cache(split, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = module._index_files
    monkeypatch.setattr(module, "_index_files", lambda *args: [Path("/proc/none/x"), list(files(*args))[1]])
    load_set(split)
    assert len(list((tmp_path / "tood_jax/indices").glob("*.json"))) == 1


def test_a_damaged_record_is_named(prepared, tmp_path):
    folder = tmp_path / "1.1.0"
    shutil.copytree(prepared, folder, ignore=lambda _, names: [one for one in names if one.startswith(".")])
    shard = next(folder.glob("*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 1
    data[len(data) // 2 - 3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"1\.1\.0: record \d+ can't be read \(RuntimeError"):
        load_tfds(str(folder), "validation")


def test_what_is_no_such_data_set_is_one_sentence(prepared, tmp_path, monkeypatch):
    def expect(message, place, part="validation"):
        with pytest.raises(DataError, match=message) as caught:
            load_tfds(str(place), part)
        assert "\n" not in str(caught.value)

    expect(r"no dataset_info\.json in data\.\*\.tfds = .*none, which doesn't exist: name the folder", tmp_path / "none")
    expect(r"no dataset_info\.json .* which holds no such file", prepared.parent)
    expect("has no split 'train': set data.*tfds_split to one of validation", prepared, "train")
    expect("has no split '': set", prepared, "")
    expect("has no split", prepared, "validation[:")
    folder = tmp_path / "1.1.0"
    folder.mkdir()
    for name in ("dataset_info.json", "features.json"):
        (folder / name).write_text("{")
    expect("can't be read as a data set of TFDS", folder)
    text = (prepared / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(text.replace('"array_record"', '"tfrecord"'))
    (folder / "features.json").write_text((prepared / "features.json").read_text())
    expect("was prepared as tfrecord, which needs TensorFlow to be read: prepare it with tfds build", folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    expect(r"needs TensorFlow Datasets \(not TensorFlow\), .*: pip install 'tood_jax\[tfds\]'", prepared)


def test_a_data_set_in_a_store(store, prepared, split, with_crowd, tmp_path):  # noqa: F811
    store(prepared, "coco/2017/1.1.0")
    found = load_set(SplitConfig(tfds="gs://bucket/coco/2017/1.1.0", tfds_split="validation"))
    assert found.ground_truth() == load_set(split).ground_truth()
    assert list((tmp_path / "cache").rglob("*.array_record*"))


def test_category_ids():
    assert category_ids(COCO_NAMES) == [one.id for one in COCO_CLASSES]
    assert (category_ids(COCO_NAMES)[0], category_ids(COCO_NAMES)[79]) == (1, 90)
    assert category_ids(["a", "b"]) == [1, 2]


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (640, 359), (51, 1333)])
def test_hundredths_of_a_pixel_come_back_exactly(size):
    height, width = size
    rng = np.random.default_rng(height)
    corner = rng.integers(0, [100 * width - 1, 100 * height - 1], (5000, 2))
    sides = 1 + (rng.random((5000, 2)) * ([100 * width, 100 * height] - corner - 1)).astype(int)
    xywh = np.concatenate([corner, sides], axis=1) / 100
    x, y, w, h = xywh.T
    shares = np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=1).astype(np.float32)
    assert absolute_boxes(shares, height, width).tolist() == xywh.tolist()


def test_other_boxes_come_back_to_the_last_bits_of_float32():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.5, (5000, 2))
    shares = np.concatenate([corner, corner + rng.uniform(0.01, 0.5, (5000, 2))], axis=1)
    y0, x0, y1, x1 = (shares * [480, 640, 480, 640]).T
    found = absolute_boxes(shares.astype(np.float32), 480, 640)
    np.testing.assert_allclose(found, np.stack([x0, y0, x1 - x0, y1 - y0], axis=1), atol=1.6e-4)
    assert absolute_boxes(np.zeros((0, 4)), 480, 640).shape == (0, 4)


def test_tensorflow_is_never_imported(split, data_config, tmp_path):
    """Not even where it is installed: a module of its name that ends the program lies on the path."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    (tmp_path / "read.py").write_text(f"""
import sys
from tood_jax.config import *
import tood_jax.cli.train
from tood_jax.data.sets import load_set
from tood_jax.data.pipeline import train_batches
if __name__ == "__main__":
    dataset = load_set({split!r})
    for workers in (0, 1):
        data = {data_config!r}
        data = DataConfig(**{{**data.__dict__, "workers": workers}})
        stream = train_batches(dataset, data, batch_size=4, seed=0, start_step=0, num_steps=2)
        print(sum(len(batch.images) for batch in stream))
    sys.exit("tensorflow" in sys.modules)
""")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(tmp_path / "read.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "8\n8\n"), done.stderr
