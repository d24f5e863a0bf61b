"""Folders whose layout is recognized: each layout gives the same data set, and what is unclear is refused."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.data.formats.layouts import (
    BOXES,
    NAMES,
    PARTS,
    SIZES,
    WRITERS,
    coco_tree,
    write_images,
    write_json,
    write_voc_files,
)
from tests.data.formats.test_tfds import prepare
from tests.data.helpers import write_array_record_folder
from tood_jax.config import SplitConfig
from tood_jax.data.dataset import class_names
from tood_jax.data.errors import DataError
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.load_folder import find_layout, load_folder

ODD = Path(__file__).resolve().parents[4] / "shared/data/odd"
needs_odd = pytest.mark.skipif(not ODD.is_dir(), reason="needs ../shared/data/odd")


def objects(dataset):
    """Return the boxes of each image as [(class, [x, y, width, height])] in pixels, and sizes, by file name."""
    names = class_names(dataset.classes)
    found = {}
    for image in dataset.images:
        rows = [
            (names[label], np.round([x0, y0, x1 - x0, y1 - y0], 3).tolist())
            for label, (x0, y0, x1, y1) in zip(image.labels, image.boxes.tolist(), strict=True)
        ]
        found[image.path.name] = ((image.height, image.width), sorted(rows))
    return found


def expected(names):
    return {
        name: (
            SIZES[name],
            sorted((NAMES[category - 1], [float(side) for side in box]) for category, box in BOXES[name]),
        )
        for name in names
    }


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_each_layout_gives_the_same_boxes(layout, tmp_path):
    WRITERS[layout](tmp_path)
    for split, names in PARTS.items():
        dataset = load_dataset(SplitConfig(folder=str(tmp_path), folder_split=split))
        assert objects(dataset) == expected(names)
        assert set(class_names(dataset.classes)) == set(NAMES)
        assert len(dataset.annotations) == sum(len(BOXES[name]) for name in names)
        for image in dataset.images:
            assert image.path.read_bytes()


def test_records_and_tfds(shapes, tmp_path):
    for split in ("train", "val"):
        write_array_record_folder(shapes, tmp_path / "records" / split)
    prepared = prepare(shapes.annotations, shapes.images, tmp_path / "tfds")
    directory = load_dataset(shapes)
    assert load_folder(str(tmp_path / "records"), "val", 0).fingerprint == directory.fingerprint
    assert find_layout(str(tmp_path / "records")).name == "records"
    found = load_folder(str(prepared), "val", 0)
    assert objects(found).keys() == objects(directory).keys()


@pytest.mark.parametrize("layout", ["json", "label studio", "records", "yolo classes", "voc"])
def test_without_val_a_fifth_is_val_by_the_seed(layout, tmp_path):
    names = [f"{i:02d}.png" for i in range(20)]
    images = tmp_path / ("images" if layout != "json" else "")
    images.mkdir(exist_ok=True)
    for name in names:
        cv2.imwrite(str(images / name), np.zeros((10, 10, 3), np.uint8))
    prefix = "images/" if layout == "label studio" else ""
    rows = [{"id": i, "file_name": prefix + name, "height": 10, "width": 10} for i, name in enumerate(names)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 3, 4, 5]} for i in range(20)]
    tree = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}
    folder = tmp_path
    if layout in ("json", "label studio"):
        write_json(tmp_path / "result.json", tree)
    elif layout == "records":
        write_json(tmp_path / "all.json", tree)
        write_array_record_folder(SplitConfig(str(images), str(tmp_path / "all.json")), tmp_path / "records")
        folder = tmp_path / "records"
    elif layout == "yolo classes":
        (tmp_path / "labels").mkdir()
        (tmp_path / "classes.txt").write_text("dog\n")
        for name in names:
            (tmp_path / "labels" / name.replace("png", "txt")).write_text("0 0.4 0.55 0.4 0.5\n")
    else:
        (tmp_path / "annots").mkdir()
        for name in names:
            (tmp_path / "annots" / name.replace("png", "xml")).write_text(
                f"<annotation><filename>{name}</filename><object><name>dog</name><bndbox><xmin>3</xmin><ymin>4</ymin>"
                "<xmax>6</xmax><ymax>8</ymax></bndbox></object></annotation>"
            )
    parts = {(split, seed): load_folder(str(folder), split, seed) for split in ("train", "val") for seed in (0, 1)}
    for seed in (0, 1):
        train, val = objects(parts["train", seed]), objects(parts["val", seed])
        assert (len(train), len(val)) == (16, 4)
        assert sorted([*train, *val]) == names
        assert all(value == ((10, 10), [("dog", [2, 3, 4, 5])]) for value in (train | val).values())
        assert {row["image_id"] for row in parts["val", seed].annotations} == {i.id for i in parts["val", seed].images}
        assert "4 of all 20 images are val" in parts["train", seed].report.summary()
    assert objects(parts["val", 0]).keys() != objects(parts["val", 1]).keys()
    again = load_folder(str(folder), "val", 0)
    assert again.fingerprint == parts["val", 0].fingerprint


def test_an_added_image_moves_at_most_one_other(tmp_path):
    """From 25 images on, 5 instead of 4 are val."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("dog\n")
    vals = []
    for name in (*(f"{i:02d}.png" for i in range(24)), "0.png"):  # the last one comes first in the order of names
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((10, 10, 3), np.uint8))
        if name in ("23.png", "0.png"):
            vals.append({image.path.name for image in load_folder(str(tmp_path), "val", 0).images})
    assert [len(val) for val in vals] == [4, 5]
    assert vals[0] < vals[1]


def refusal(folder, split="train", broken_images="fail"):
    with pytest.raises(DataError) as error:
        load_folder(str(folder), split, 0, broken_images)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_ambiguous_is_listed(tmp_path):
    WRITERS["plain coco"](tmp_path)
    write_json(tmp_path / "train.json", coco_tree())
    assert "several COCO files of the split train: train.json, annotations/instances_train.json." in refusal(tmp_path)
    (tmp_path / "train.json").unlink()
    WRITERS["ultralytics"](tmp_path)
    message = refusal(tmp_path)
    assert "several layouts: YOLO (" in message
    assert "instances_val.json" in message


def test_a_folder_without_a_layout_is_listed(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert "it holds notes.txt, one/, two/" in refusal(tmp_path)
    assert "can't be listed (No such file or directory)" in refusal(tmp_path / "missing")
    assert "must be a folder of this machine" in refusal("gs://bucket/data")


def test_a_split_that_does_not_exist(tmp_path):
    WRITERS["voc"](tmp_path)
    assert "(Pascal VOC) has no split test; its splits: train, val." in refusal(tmp_path, "test")
    assert "folder_split=best must be one of train, val, test" in refusal(tmp_path, "best")
    with pytest.raises(DataError, match=r"folder_split=\(empty\)"):
        load_dataset(SplitConfig(folder=str(tmp_path)))


def test_segments_keypoints_and_rotated_boxes_become_boxes(tmp_path):
    WRITERS["ultralytics"](tmp_path)
    labels = tmp_path / "labels/val/b.txt"
    labels.write_text("1 0.25 0.5 0.75 0.5 0.5 0.9\n0 .1 .1 .5 .1 .5 .2 .1 .2\n\n")
    rows = objects(load_folder(str(tmp_path), "val", 0))["b.png"][1]
    assert rows == [("cat", [5, 25, 10, 20]), ("dog", [2, 5, 8, 5])]
    data = tmp_path / "data.yaml"
    data.write_text(data.read_text() + "kpt_shape: [2, 3]\n")
    labels.write_text("1 0.5 0.5 0.5 0.2 .1 .1 2 .2 .2 0\n")
    assert objects(load_folder(str(tmp_path), "val", 0))["b.png"][1] == [("cat", [5, 20, 10, 10])]


def test_six_digits_are_no_box_outside(tmp_path):
    """(0.333333 − 0.666667 / 2) · 3000 is −0.0015 pixels."""
    WRITERS["ultralytics"](tmp_path)
    cv2.imwrite(str(tmp_path / "images/val/b.png"), np.zeros((30, 3000, 3), np.uint8))
    labels = tmp_path / "labels/val/b.txt"
    labels.write_text("0 0.333333 0.5 0.666667 1.000001\n")
    dataset = load_folder(str(tmp_path), "val", 0)
    assert dataset.annotations[0]["bbox"][:2] == [0, 0]
    assert "clipped" not in dataset.report.summary()
    labels.write_text("0 0.333 0.5 0.667 1\n")
    assert "1 boxes clipped" in load_folder(str(tmp_path), "val", 0).report.summary()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1 must begin with a class from 0 to 1, not 2"),
        ("dog 0.5 0.5 0.1 0.1", "a class from 0 to 1, not dog"),
        ("nan 0.5 0.5 0.1 0.1", "a class from 0 to 1, not nan"),
        ("0 0.5 0.5 0.1", "line 1 must have a class and x, y, width, height"),
        ("0 0.5 x 0.1 0.1", "line 1 must have a class and x, y, width, height"),
        ("0 nan 0.5 0.1 0.1", "line 1 must have a class and x, y, width, height"),
        ("0 inf 0.5 0.1 0.1", "line 1 must have a class and x, y, width, height"),
        ("\udcff", "is not a text file in UTF-8"),
    ],
)
def test_a_bad_line_of_labels_is_named(tmp_path, line, reason):
    WRITERS["ultralytics"](tmp_path)
    (tmp_path / "labels/val/b.txt").write_bytes(line.encode(errors="surrogateescape"))
    message = refusal(tmp_path, "val")
    assert reason in message
    assert str(tmp_path / "labels/val/b.txt") in message


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("names: [a\ntrain: x", "is not YAML"),
        ("names: {0: a, 2: b}\ntrain: images/train", "numbered 0, 1, … without gaps"),
        ("names: [a]\nnc: 2\ntrain: images/train", "nc is 2, but there are 1 names"),
        ("names: 5\ntrain: images/train", "must be a list of class names"),
        ("names: [a, b]\ntrain: nowhere", "train names nowhere, which does not exist"),
        ("names: [a, b]\ntrain: labels", "train has no images in labels"),
        ("names: [a, b]\ntrain: {a: 1}", "train must be a folder or a text file"),
        ("names: !!python/object/apply:os.system ['true']\ntrain: images", "is not YAML"),
    ],
)
def test_a_bad_yaml_file_is_named(tmp_path, yaml, reason):
    WRITERS["ultralytics"](tmp_path)
    (tmp_path / "data.yaml").write_text(yaml)
    message = refusal(tmp_path)
    assert reason in message
    assert "data.yaml" in message


def test_a_list_of_images_and_labels_beside_them(tmp_path):
    write_images(tmp_path / "all")
    (tmp_path / "all/b.txt").write_text("1 0.4 0.4 0.4 0.6")
    (tmp_path / "val.txt").write_text("./all/b.png\nall/c.png\n\n")
    (tmp_path / "set.yaml").write_text("names: {0: dog, 1: cat}\ntrain: [all]\nval: val.txt\n")
    assert objects(load_folder(str(tmp_path), "val", 0)) == expected(("b.png", "c.png"))
    assert len(load_folder(str(tmp_path), "train", 0).images) == 3


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path):
    WRITERS["ultralytics"](tmp_path / "yolo")
    (tmp_path / "yolo/images/train/c.png").write_bytes(b"no image")
    assert "c.png is not an image" in refusal(tmp_path / "yolo")
    summary = load_folder(str(tmp_path / "yolo"), "train", 0, "skip").report.summary()
    assert "2 images, 2 objects" in summary
    assert "1 images that can't be read, whose objects are placed as on 1000×1000 pixels (c.png)" in summary
    WRITERS["voc"](tmp_path / "voc")
    (tmp_path / "voc/VOCdevkit/VOC2012/JPEGImages/c.png").unlink()
    assert "1 of the 2 images of" in refusal(tmp_path / "voc")
    assert (
        "1 images missing in the folder (c" in load_folder(str(tmp_path / "voc"), "train", 0, "skip").report.summary()
    )


def test_pixels_of_voc_count_from_one_unless_a_box_begins_at_zero(tmp_path):
    write_images(tmp_path / "images", ("c.png",))
    (tmp_path / "annotations").mkdir()
    for first, last, box in (
        (1, 10, [0, 0, 10, 10]),
        (2, 5, [1, 1, 4, 4]),
        (0, 10, [0, 0, 10, 10]),
        (0, 5, [0, 0, 5, 5]),
    ):
        (tmp_path / "annotations/c.xml").write_text(
            f"<annotation><object><name>dog</name><difficult>0</difficult><bndbox><xmin>{first}</xmin><ymin>{first}</ymin>"
            f"<xmax>{last}</xmax><ymax>{last}</ymax></bndbox></object></annotation>"
        )
        splits = find_layout(str(tmp_path)).splits
        assert objects(splits[""].load("fail", True))["c.png"] == ((10, 10), [("dog", box)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "has a document type"),
        ("<annotation>", "is not XML"),
        ("<annotation>" + "<a>" * 200 + "</a>" * 200 + "</annotation>", "is nested too deeply"),
        ("<annotation><object/></annotation>", "an <object> has no <name>"),
        ("<annotation><object><name>a</name></object></annotation>", "needs <bndbox> with numbers"),
        ("<annotation/>", "has an object"),
    ],
)
def test_a_bad_xml_file_is_named(tmp_path, text, reason):
    write_images(tmp_path / "images", ("c.png",))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/c.xml").write_text(text)
    assert reason in refusal(tmp_path)


def test_a_missing_xml_file_of_an_image_set_is_named(tmp_path):
    WRITERS["voc"](tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Main/train.txt").write_text("a\nzebra\n")
    assert "names zebra, but there is no zebra.xml" in refusal(tmp_path)


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    write_json(tmp_path / "result.json", coco_tree(prefix="../"))
    assert "leads out of the image folder" in refusal(tmp_path)


def test_a_fifo_is_never_opened(tmp_path):
    WRITERS["ultralytics"](tmp_path)
    (tmp_path / "labels/val/b.txt").unlink()
    os.mkfifo(tmp_path / "labels/val/b.txt")
    assert "it is a FIFO" in refusal(tmp_path, "val")


def test_images_in_no_folder_are_explained(tmp_path):
    write_json(tmp_path / "annotations/train.json", coco_tree())
    write_images(tmp_path / "pictures", ())
    message = refusal(tmp_path)
    assert "None of the first 3 images of" in message
    assert "(pictures, the folder itself)" in message


@needs_odd
@pytest.mark.parametrize(
    ("file", "images", "boxes", "names"),
    [
        ("DineshRamachandran14__annotations_instances_val2017.json", 14, 37, 6),
        ("HumanSignal__tests_custom_converter_data_test_import_coco_coco_import_input.json", 2, 2, 2),
        ("roboflow__tests_datasets_sharks-tiny-coco_valid__annotations.coco.json", 2, 10, 4),
        ("roboflow__tests_annotations_valid_annotation.json", 1, 2, 1),
        ("obss__tests_data_coco_utils_terrain2_coco.json", 1, 5, 1),
        ("obss__tests_data_coco_utils_terrain_all_coco.json", 3, 22, 2),
        ("obss__tests_data_coco_utils_visdrone2019-det-train-first50image.json", 50, 3326, 2),
        ("openvinotoolkit__tests_assets_kaggle_dataset_relaxed_coco_annotations.json", 2, 2, 2),
        ("openvinotoolkit__tests_assets_roboflow_dataset_coco_train__annotations.coco.json", 2, 2, 2),
        ("openvinotoolkit__tests_assets_coco_dataset_coco_annotations_instances_val.json", 1, 2, 3),
    ],
)
def test_exports_of_other_tools_are_read(tmp_path, file, images, boxes, names):
    """With images of the sizes that the files give; the counts are those of SOURCES.md."""
    tree = json.loads((ODD / file).read_text())
    (tmp_path / "result.json").write_bytes((ODD / file).read_bytes())
    for entry in tree["images"]:
        path = tmp_path / entry["file_name"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read, because the file has all sizes")
    dataset = find_layout(str(tmp_path)).splits[""].load("fail", True)
    assert (len(dataset.images), len(dataset.annotations), len(dataset.classes)) == (images, boxes, names)


@needs_odd
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("HumanSignal__tests_custom_converter_data_test_export_coco_data.json", "has no layout that is recognized"),
        ("roboflow__tests_annotations_invalid_annotation.json", "has no layout that is recognized"),
        ("openvinotoolkit__tests_assets_datumaro_dataset_legacy_annotations_train.json", "has no layout that is recog"),
        ("openvinotoolkit__tests_assets_cvat_dataset_for_images_export_project_annotations.xml", "has no layout"),
        ("DanielHfnr__annotations_train.json", "id '_semantic' occurs twice"),
    ],
)
def test_files_that_are_no_data_set_are_named(tmp_path, file, reason):
    (tmp_path / f"all{Path(file).suffix}").write_bytes((ODD / file).read_bytes())
    if file.startswith("Daniel"):  # so that the first thing wrong with it is the file itself
        for entry in json.loads((ODD / file).read_text())["images"]:
            (tmp_path / entry["file_name"]).write_bytes(b"")
    message = refusal(tmp_path)
    assert reason in message
    assert f"all{Path(file).suffix}" in message


@needs_odd
def test_voc_files_of_a_real_set(tmp_path):
    """The kangaroo set; its image 00090.jpg is truncated, which only decoding shows."""
    for kind, folder in (("annots", "annots"), ("images", "images")):
        (tmp_path / folder).mkdir()
        for file in ODD.glob(f"experiencor__{kind}_*"):
            (tmp_path / folder / file.name.rpartition("_")[2]).write_bytes(file.read_bytes())
    found = objects(find_layout(str(tmp_path)).splits[""].load("fail", True))
    assert set(found) == {"00090.jpg", "00103.jpg"}
    assert found["00103.jpg"] == ((321, 480), [("kangaroo", [18, 83, 253, 191]), ("kangaroo", [271, 112, 96, 161])])


def test_voc_files_of_hotcoco_keep_crowds_as_difficult(tmp_path):
    write_images(tmp_path / "images")
    write_voc_files(tmp_path)
    assert objects(find_layout(str(tmp_path)).splits[""].load("fail", True)) == expected(SIZES)
