"""Formats of a split, and splits that training cannot use."""

import numpy as np
import pytest

from tests.data.helpers import write_array_record_folder
from tood_jax.config import DataConfig, SplitConfig
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.load_dataset import FORMATS, DataFormat, check_for_training, load_dataset


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
