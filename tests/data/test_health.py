"""The check of a folder: each planted fault is counted and named, and a sound folder has none."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.formats.layouts import WRITERS, coco_tree, write_images, write_json
from tests.data.helpers import smooth_image
from tood_jax.config import DataConfig
from tood_jax.data.health import inspect, object_sides, size_counts
from tood_jax.data.load_folder import load_folder

ODD = Path(__file__).resolve().parents[3] / "shared/data/odd"
DATA = DataConfig(eval_short_side=100, max_long_side=1000, max_objects=3)


def texts(health, *levels):
    return [str(finding) for finding in health.sorted_findings() if not levels or finding.level in levels]


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_a_sound_folder_has_no_errors_and_no_warnings(layout, tmp_path):
    WRITERS[layout](tmp_path)
    health = inspect(str(tmp_path), DATA)
    assert not health.has_errors
    assert set(health.datasets) == {"train", "val"}
    assert texts(health, "error", "warning") == []


@pytest.fixture
def broken(tmp_path):
    """A COCO folder with one fault of each kind; a.png, b.png and c.png of `layouts` are sound."""
    tree = coco_tree()
    tree["categories"].append({"id": 3, "name": "zebra"})
    images, boxes = tree["images"], tree["annotations"]

    def add(name, height=40, width=60, objects=()):
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for box in objects:
            boxes.append({"id": len(boxes) + 100, "image_id": len(images), "category_id": 1, "bbox": box})

    write_images(tmp_path / "train")
    write_images(tmp_path / "val", ("b.png",))
    (tmp_path / "train/text.jpg").write_text("no image")
    add("text.jpg")
    add("missing.jpg")
    cv2.imwrite(str(tmp_path / "train/other.png"), smooth_image(20, 30))
    add("other.png")
    shutil.copy(tmp_path / "train/a.png", tmp_path / "train/copy.png")
    add("copy.png", 30, 40)
    cv2.imwrite(str(tmp_path / "train/boxes.png"), smooth_image(40, 60, seed=1))
    add("boxes.png", 40, 60, [[0, 0, 5, 5], [0, 0, 5, 5], [50, 10, 20, 5], [100, 100, 5, 5], [5, 5, 0.5, 5]])
    write_json(tmp_path / "annotations/instances_train.json", tree)
    write_json(tmp_path / "annotations/instances_val.json", coco_tree(("b.png",)))
    return tmp_path


def test_each_fault_is_counted_and_named(broken):
    health = inspect(str(broken), DATA)
    found = texts(health)
    expected = [
        "error: train: 2 images that can't be read (text.jpg is not an image that can be decoded, missing.jpg can't be "
        "read (No such file or directory))",
        "error: train: 1 images of another size than their annotations (other.png is 30×20 pixels, annotated for "
        "60×40)",
        "error: val: 1 other list of categories than train: both need the same names with the same ids (3 zebra)",
        "warning: train: 1 groups of identical images (a.png = copy.png)",
        "warning: train: 1 boxes listed twice with the same class (boxes.png)",
        "warning: train: 1 boxes with a side below 1 pixel (boxes.png)",
        "warning: train: 1 images with more objects than data.max_objects=3, of which the largest are kept: raise it "
        "(boxes.png: 4)",
        "warning: val: 1 images that train has too, so that scores are too high (b.png = b.png)",
        "warning: train: 1 classes without objects (zebra)",
    ]
    assert [one for one in expected if one not in found] == []
    assert any("train: 1 boxes clipped to the image for training (annotation 105 in boxes.png)" in one for one in found)
    assert any("1 boxes without area or outside the image left out" in one and "boxes.png" in one for one in found)
    levels = [finding.level for finding in health.sorted_findings()]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert health.has_errors


def test_a_split_that_cannot_be_read_is_an_error_of_that_split(tmp_path):
    WRITERS["plain coco"](tmp_path)
    (tmp_path / "annotations/instances_val.json").write_text('{"images": [], "categories": []}')
    health = inspect(str(tmp_path), DATA)
    assert set(health.datasets) == {"train"}
    (error,) = texts(health, "error")
    assert error.startswith("error: val: 1 reason not to use it: ")
    assert "the list 'images' is empty" in error


def test_sizes_are_those_after_resizing(tmp_path):
    WRITERS["plain coco"](tmp_path)
    dataset = load_folder(str(tmp_path), "train", 0)  # a.png, 30 × 40 pixels, becomes 100 × 133
    np.testing.assert_allclose(sorted(object_sides(dataset, DATA)), np.array([100, 200]) ** 0.5 * 100 / 30, rtol=1e-5)
    assert size_counts(dataset, DATA) == [0, 0, 0, 2, 0, 0, 0]


def test_rare_classes_and_small_objects(tmp_path):
    write_images(tmp_path / "train", ("a.png",))
    tree = coco_tree(("a.png",))
    boxes = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [i % 30, i // 30, 2, 2]} for i in range(10, 70)]
    tree["annotations"] = [*boxes, {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}]
    write_json(tmp_path / "annotations/train.json", tree)
    write_json(tmp_path / "annotations/val.json", tree)
    found = texts(inspect(str(tmp_path), DATA), "warning")
    assert "warning: train: 1 classes are more than 50 times as rare as dog (60 objects) (cat: 1)" in found
    assert any("train: 60 of 61 objects are smaller than the smallest stride (8 pixels)" in one for one in found)


def exif(name, target):
    """Write a JPEG of 30 × 20 pixels whose EXIF says that it is turned by 90°."""
    from PIL import Image

    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(smooth_image(20, 30)).save(target / name, exif=tags)


def test_exif_orientation_is_counted_by_what_was_annotated(tmp_path):
    (tmp_path / "train").mkdir()
    exif("up.jpg", tmp_path / "train")
    exif("raw.jpg", tmp_path / "train")
    tree = coco_tree(())
    tree["images"] = [
        {"id": 1, "file_name": "up.jpg", "height": 30, "width": 20},
        {"id": 2, "file_name": "raw.jpg", "height": 20, "width": 30},
    ]
    tree["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    write_json(tmp_path / "annotations/train.json", tree)
    write_json(tmp_path / "annotations/val.json", tree)
    found = texts(inspect(str(tmp_path), DATA))
    assert "note: train: 1 images turned by EXIF orientation (up.jpg)" in found
    assert "note: train: 1 images annotated without their EXIF orientation, which is ignored (raw.jpg)" in found
    assert not any("another size" in one for one in found)


@pytest.mark.skipif(not ODD.is_dir(), reason="needs ../shared/data/odd")
def test_every_odd_image_is_read_or_named(tmp_path):
    """Those that can't be read are the ones that OpenCV can't decode according to SOURCES.md."""
    folder = tmp_path / "images"
    folder.mkdir()
    files = [file for file in ODD.iterdir() if file.suffix not in (".json", ".xml", ".md")]
    for file in files:
        shutil.copy(file, folder)
    (tmp_path / "data.yaml").write_text("names: [thing]\ntrain: images\nval: images\n")
    health = inspect(str(tmp_path), DATA)
    assert len(health.datasets["train"].images) == len(files)
    (broken,) = [one for one in health.findings if one.split == "train" and "can't be read" in one.what]
    rows = [line for line in (ODD / "SOURCES.md").read_text().splitlines() if "cv2 None" in line]
    undecodable = {line.split("`")[1] for line in rows} & {file.name for file in files}
    named = {example.partition(" ")[0] for example in broken.examples}
    assert broken.number == len(named) == len(broken.examples)
    assert named == undecodable
    assert len(named) == 10
    assert not any("another size" in one.what for one in health.findings)
