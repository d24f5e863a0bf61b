"""Formats of a split, and splits that training cannot use."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.helpers import write_array_record_folder
from tood_jax.config import DataConfig, SplitConfig
from tood_jax.config.presets import small_set, tood_r50_fpn_1x_coco
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import load_coco, parse_coco
from tood_jax.data.load_dataset import (
    FORMATS,
    DataFormat,
    check_for_training,
    filter_for_training,
    load_dataset,
)


def check(train, val, split):
    check_for_training(train, val, DataConfig(train=split, val=split))


def test_valid_splits_pass(write_coco, tree):
    split = write_coco(tree)
    dataset = load_coco(split)
    check(dataset, dataset, split)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "1 crowd boxes left out"),
        ({"ignore": "true"}, "1 boxes marked 'ignore' or 'difficult' left out"),
        ({"bbox": [0, 0, 0, 0]}, "1 boxes without area"),
        ({"image_id": 12}, "1 annotations of unknown images dropped"),
    ],
)
def test_a_training_set_with_annotations_but_no_box_is_refused(write_coco, tree, change, reason):
    valid = load_coco(write_coco(tree))
    tree["annotations"][0] |= change
    split = write_coco(tree)
    without_boxes = load_coco(split)
    with pytest.raises(DataError, match=r"data\.train: none of the 1 annotations of .* can be used for") as caught:
        check(without_boxes, valid, split)
    assert reason in str(caught.value)
    check(valid, without_boxes, split)  # a val split without boxes does not prevent training


def test_a_training_set_without_annotations_is_background(write_coco, tree):
    tree["annotations"] = []
    split = write_coco(tree)
    dataset = load_coco(split)
    check(dataset, dataset, split)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_test_set_is_refused_for_both_splits(write_coco, tree, name):
    valid = load_coco(write_coco(tree))
    del tree["annotations"]
    split = write_coco(tree)
    test_set = load_coco(split)
    with pytest.raises(DataError, match=rf"data\.{name}: .* has no list 'annotations'.*eval\.py writes"):
        check(*((test_set, valid) if name == "train" else (valid, test_set)), split)


@pytest.mark.parametrize("data_format", ["COCO directory", "records"])
def test_a_split_loaded_for_training_keeps_no_annotations(write_coco, tree, tmp_path, data_format):
    split = write_coco(tree)
    if data_format == "records":
        write_array_record_folder(split, tmp_path / "records")
        split = SplitConfig(records=f"{tmp_path}/records")
    for_training, for_evaluation = load_dataset(split, for_evaluation=False), load_dataset(split)
    assert for_evaluation.ground_truth()["annotations"]
    for image, expected in zip(for_training.images, for_evaluation.images, strict=True):
        np.testing.assert_array_equal(image.boxes, expected.boxes)
    with pytest.raises(ValueError, match="for_evaluation"):
        for_training.ground_truth()


def test_a_new_format_needs_one_entry_in_the_table(monkeypatch, shapes_set):
    new = DataFormat(
        location=lambda split: split.annotations if split.annotations.endswith(".yaml") else "",
        load=lambda split, broken_images, for_evaluation: shapes_set,
    )
    monkeypatch.setitem(FORMATS, "new", new)
    assert load_dataset(SplitConfig("images", "a.yaml")) is shapes_set
    with pytest.raises(DataError, match=r"records=/x and new=a\.yaml each name the whole split"):
        load_dataset(SplitConfig("images", "a.yaml", records="/x"))


def test_the_fingerprint_depends_on_the_content_and_not_on_the_location(write_coco, tree, tmp_path):
    split = write_coco(tree)
    dataset = load_coco(split)
    write_array_record_folder(split, tmp_path / "records")
    assert load_dataset(SplitConfig(records=f"{tmp_path}/records")).fingerprint == dataset.fingerprint
    tree["annotations"][0]["bbox"] = [1, 2, 10, 21]
    changed = load_coco(write_coco(tree)).fingerprint
    assert {name for name, value in changed.items() if value != dataset.fingerprint[name]} == {"boxes"}


PUBLISHED = DataConfig(filter_empty=True, min_image_side=32, filter_tiny_boxes=True)


def random_tree(seed, images=60):
    """An instances file with images without annotations, small images, crowds and tiny boxes."""
    rng = np.random.default_rng(seed)
    tree = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for id_ in range(images):
        width, height = (int(side) for side in rng.choice([20, 31, 32, 33, 200], 2))
        tree["images"].append({"id": id_, "file_name": f"{id_}.jpg", "width": width, "height": height})
        for _ in range(rng.choice([0, 0, 1, 3])):
            x, y, w, h = (float(v) for v in rng.choice([-5, 0, 0.5, 0.999, 1, 1.5, 12], 4))
            area = float(rng.choice([0, -1, 5, 50]))
            annotation = {"image_id": id_, "category_id": int(rng.integers(1, 3)), "bbox": [x, y, w, h], "area": area}
            crowd = {"iscrowd": int(rng.random() < 0.3), "id": len(tree["annotations"]) + 1}
            tree["annotations"].append(annotation | crowd)
    return tree


def parse(tree):
    return parse_coco(tree, "a.json", lambda names: [Path(name) for name in names], for_evaluation=False)


def as_mmdetection(tree):
    """File name → boxes of the images and instances that mmdetection 3.3's CocoDataset trains on, by plain loops."""
    kept = {}
    for image in tree["images"]:
        annotations = [entry for entry in tree["annotations"] if entry["image_id"] == image["id"]]
        if not annotations or min(image["width"], image["height"]) < 32:
            continue
        boxes = []
        for entry in annotations:
            x, y, w, h = entry["bbox"]
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, image["width"]), min(y + h, image["height"])
            inside = max(0, x1 - x0) * max(0, y1 - y0)
            if inside == 0 or entry["area"] <= 0 or w < 1 or h < 1 or entry["iscrowd"]:
                continue
            boxes.append([x0, y0, x1, y1])
        kept[image["file_name"]] = boxes
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_the_published_filters_keep_what_mmdetection_keeps(seed):
    tree = random_tree(seed)
    filtered = filter_for_training(parse(tree), PUBLISHED)
    expected = as_mmdetection(tree)
    assert [image.path.name for image in filtered.images] == list(expected)
    for image, boxes in zip(filtered.images, expected.values(), strict=True):
        np.testing.assert_allclose(image.boxes, np.reshape(boxes, (-1, 4)), rtol=1e-6)
        assert len(image.labels) == len(boxes)
    assert filtered.report.images == len(expected)
    assert filtered.report.objects == sum(map(len, expected.values()))
    assert "left out of training by data.min_image_side" in filtered.report.summary()


def test_without_filters_nothing_changes():
    dataset = parse(random_tree(0))
    assert filter_for_training(dataset, DataConfig()).fingerprint == dataset.fingerprint


def test_filters_that_leave_no_image_are_refused():
    tree = random_tree(0)
    tree["annotations"] = []
    refused = r"data\.filter_empty=True and data\.min_image_side=32 leave none of the 60 images"
    with pytest.raises(DataError, match=refused):
        filter_for_training(parse(tree), PUBLISHED)


@pytest.mark.slow
def test_coco_has_117266_training_images_as_published():
    """Of COCO's 118,287 images 1,021 have no annotation; the published configs leave these out."""
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(118_287)]
    annotations = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": 1,
            "bbox": [10, 10, 50, 60],
            "area": 3000,
            "iscrowd": int(i % 9 == 0),
        }
        for i in range(117_266)
    ]
    dataset = parse({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]})
    assert len(filter_for_training(dataset, tood_r50_fpn_1x_coco().data).images) == 117_266
    assert len(filter_for_training(dataset, small_set().data).images) == 118_287
