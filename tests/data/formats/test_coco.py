"""Annotation files, valid and invalid."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood_jax.config import SplitConfig
from tood_jax.data.dataset import ClassInfo
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.formats.coco import load_coco

ID = 9_007_199_254_740_993  # of the first image; a float cannot hold it


def annotation(bbox, **more):
    return {"id": 6, "image_id": ID, "category_id": 3, "bbox": bbox, "area": 1, "iscrowd": 0, **more}


def test_a_valid_file_is_loaded(write_coco, tree):
    dataset = load_coco(write_coco(tree))
    assert dataset.classes == (ClassInfo(3, "early"), ClassInfo(90, "late"))
    first, second = dataset.images
    assert (first.id, first.path.name, first.height, first.width) == (ID, "a.png", 30, 40)
    np.testing.assert_array_equal(first.boxes, np.array([[1, 2, 11, 22]], np.float32))
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [1]
    assert second.id == 2
    assert second.boxes.shape == (0, 4)
    assert second.labels.dtype == np.int32
    assert dataset.report.summary() == (
        "2 images, 1 objects; 1 images without objects (b.png); 1 classes without objects (early)."
    )


def test_crowds_are_left_out_of_training_but_stay_in_the_ground_truth(write_coco, tree):
    tree["annotations"].append(annotation([0, 0, 5, 5], iscrowd=1))
    dataset = load_coco(write_coco(tree))
    assert len(dataset.images[0].boxes) == 1
    assert [entry["iscrowd"] for entry in dataset.ground_truth()["annotations"]] == [0, 1]
    assert dataset.report.counts["crowd boxes left out of training"] == 1


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-5, -6, 10, 10], [0, 0, 5, 4]),
        ([30, 20, 100, 100], [30, 20, 40, 30]),
        ([1.5, 2.25, 3, 4], [1.5, 2.25, 4.5, 6.25]),
    ],
)
def test_boxes_are_clipped_to_the_image(write_coco, tree, bbox, expected):
    tree["annotations"] = [annotation(bbox)]
    dataset = load_coco(write_coco(tree))
    assert dataset.images[0].boxes.tolist() == [expected]
    assert dataset.report.counts["boxes clipped to the image for training"] == (bbox != [1.5, 2.25, 3, 4])


@pytest.mark.parametrize("bbox", [[5, 5, 0, 3], [5, 5, 3, -1], [40, 0, 5, 5], [-9, 0, 9, 5], [0, 31, 5, 5]])
def test_boxes_without_area_or_outside_are_left_out_of_training_but_stay_in_the_ground_truth(write_coco, tree, bbox):
    tree["annotations"].append(annotation(bbox))
    dataset = load_coco(write_coco(tree))
    assert len(dataset.images[0].boxes) == 1
    assert [entry["bbox"] for entry in dataset.ground_truth()["annotations"]] == [[1, 2, 10, 20], bbox]
    expected = "1 boxes without area or outside the image left out of training (annotation 6 in a.png)"
    assert expected in dataset.report.summary()


def test_missing_values_are_filled_in(write_coco, tree):
    bare = {"image_id": ID, "category_id": 3, "bbox": [0, 0, 4, 5]}
    tree["annotations"] = [bare, {**bare, "area": None}]
    del tree["images"][1]["width"]
    tree["images"][1]["height"] = None
    dataset = load_coco(write_coco(tree))
    assert (dataset.images[1].height, dataset.images[1].width) == (50, 20)
    filled = dataset.ground_truth()["annotations"]
    assert [(entry["id"], entry["area"], entry["iscrowd"]) for entry in filled] == [(1, 20, 0), (2, 20, 0)]
    counts = dataset.report.counts
    assert counts["missing 'area' taken from the box"] == counts["missing 'iscrowd' taken as 0"] == 2
    assert counts["image sizes read from the files"] == 1


def test_a_missing_size_of_a_broken_image_is_an_error(write_coco, tree):
    tree["images"][1] = {"id": 3, "file_name": "broken.png"}
    split = write_coco(tree)
    (Path(split.images) / "broken.png").touch()
    with pytest.raises(BrokenImageError, match=r"broken\.png is empty"):
        load_coco(split)


def test_duplicate_annotation_ids_are_renumbered(write_coco, tree):
    tree["annotations"] = [annotation([0, 0, 4, 5]), annotation([1, 1, 4, 5]), annotation([2, 2, 4, 5], id=[1])]
    dataset = load_coco(write_coco(tree))
    assert [entry["id"] for entry in dataset.annotations] == [1, 2, 3]
    assert dataset.report.counts["duplicate annotation ids renumbered"] == 1


def test_missing_annotation_ids_are_not_duplicates(write_coco, tree):
    bare = {"image_id": ID, "category_id": 3, "bbox": [0, 0, 4, 5], "area": 20, "iscrowd": 0}
    tree["annotations"] = [bare, dict(bare)]
    dataset = load_coco(write_coco(tree))
    assert [entry["id"] for entry in dataset.annotations] == [1, 2]
    assert not any("duplicate" in what for what in dataset.report.counts)


@pytest.mark.parametrize("area", [True, "12", None, [3]])
def test_an_area_that_is_not_a_number_is_taken_from_the_box(write_coco, tree, area):
    tree["annotations"] = [annotation([0, 0, 4, 5], area=area)]
    assert load_coco(write_coco(tree)).annotations[0]["area"] == 20


@pytest.mark.parametrize("area", [0, -3, 12.5])
def test_the_area_of_the_file_decides_the_size_in_evaluation(write_coco, tree, area):
    tree["annotations"] = [annotation([0, 0, 4, 5], area=area)]
    dataset = load_coco(write_coco(tree))
    assert dataset.annotations[0]["area"] == area
    assert dataset.report.counts["objects of 'area' 0 or less, evaluated as such"] == (area <= 0)


def test_the_report_names_a_split_without_boxes(write_coco, tree):
    tree["annotations"] = [annotation([0, 0, 0, 0])]
    dataset = load_coco(write_coco(tree))
    assert [len(image.labels) for image in dataset.images] == [0, 0]
    assert "2 images, 0 objects; no box is usable, so nothing can be learned" in dataset.report.summary()
    assert "2 classes without objects (early, late)" in dataset.report.summary()


def test_annotations_of_unknown_images_are_dropped(write_coco, tree):
    tree["annotations"] += [annotation([0, 0, 4, 5], image_id=image) for image in (12, None, [1])]
    dataset = load_coco(write_coco(tree))
    assert dataset.report.counts["annotations of unknown images dropped"] == 3
    assert dataset.report.objects == 1


def test_images_may_be_in_subfolders(write_coco, tree):
    tree["images"].append({"id": 3, "file_name": "deep/c.png", "width": 10, "height": 10})
    assert load_coco(write_coco(tree)).images[2].path.is_file()


def test_the_report_names_three_examples(write_coco, tree):
    tree["annotations"] = [annotation([0, 0, 0, 0], id=number) for number in range(5)]
    summary = load_coco(write_coco(tree)).report.summary()
    assert "5 boxes without area or outside the image left out of training (annotation 0 in a.png, " in summary
    assert "annotation 2 in a.png, …)" in summary
    assert "annotation 3" not in summary


def change(key, value):
    def damage(tree):
        tree[key] = value

    return damage


def change_item(key, position=0, **fields):
    def damage(tree):
        tree[key][position].update(fields)

    return damage


def again(key):
    def damage(tree):
        tree[key].append(dict(tree[key][0]))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("images", []), r"list 'images' is empty"),
        (change("categories", []), r"list 'categories' is empty"),
        (change("categories", None), r"no list 'categories'"),
        (change("annotations", {}), r"no list 'annotations'"),
        (change("annotations", [{"image_id": ID, "caption": "a dog"}]), r"no 'bbox'.*captions"),
        (change("annotations", [7]), r"entry 0 has no 'bbox'"),
        (change("categories", [{"name": "x"}]), r"no integer 'id'"),
        (change("images", [{"id": 1}]), r"needs an 'id' .* and a 'file_name'"),
        (change("images", ["a.png"]), r"needs an 'id'"),
        (change_item("images", 1, id="two"), r"images: ids are numbers and texts \(9007199254740993, 'two'\)"),
        (again("images"), r"images: id 9007199254740993 occurs twice \(a\.png and a\.png\)"),
        (again("categories"), r"categories: id 90 occurs twice"),
        (change_item("images", file_name="wrong/a.png"), r"1 of the 2 images of .* are not in .* \(wrong/a\.png\)"),
        (change_item("annotations", category_id=4), r"annotation 5 has category_id 4, which 'categories' doesn't"),
        (change_item("annotations", category_id=[4]), r"has category_id \[4\]"),
        (change_item("annotations", bbox=[1, 2, 3]), r"annotation 5: 'bbox' must be four finite numbers"),
        (change_item("annotations", bbox=[1, 2, 3, "4"]), r"four finite numbers"),
        (change_item("annotations", bbox=[1, 2, 3, float("nan")]), r"holds NaN, which JSON does not have"),
        (change_item("annotations", bbox=[1, 2, 3, float("inf")]), r"holds Infinity, which JSON does not have"),
        (change_item("annotations", bbox=None), r"four finite numbers"),
    ],
)
def test_errors_name_the_file_and_the_field(write_coco, tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message) as caught:
        load_coco(write_coco(tree))
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty, not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"<!DOCTYPE html>", "is an HTML or XML page"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"{'images': 1}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a JSON list, not COCO's object"),
        (b"{}", "has no list 'images'"),
    ],
)
def test_other_files_are_refused(write_coco, content, message):
    with pytest.raises(DataError, match=message):
        load_coco(write_coco(content))


def test_missing_files_and_folders_name_the_setting(write_coco, tree, tmp_path):
    split = write_coco(tree)
    with pytest.raises(DataError, match=r"no annotation file .*none\.json: set data\.\*\.annotations"):
        load_coco(SplitConfig(split.images, str(tmp_path / "none.json")))
    with pytest.raises(DataError, match=r"no image folder .*nowhere: set data\.\*\.images"):
        load_coco(SplitConfig(str(tmp_path / "nowhere"), split.annotations))


def test_the_ground_truth_can_be_evaluated(write_coco, tree):
    """By pycocotools, although ids are text and fields were missing; with the ground truth as detections AP is 1."""
    tree["images"][0]["id"], tree["images"][1]["id"] = "one", "two"
    tree["annotations"] = [
        {"image_id": "one", "category_id": 90, "bbox": [1, 2, 10, 20]},
        {"image_id": "two", "category_id": 3, "bbox": [0, 0, 10, 40]},
    ]
    ground_truth = load_coco(write_coco(tree)).ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        target = COCO()
        target.dataset = ground_truth
        target.createIndex()
        dataset = target.loadRes([{**entry, "score": 0.9} for entry in ground_truth["annotations"]])
        evaluation = COCOeval(target, dataset, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_the_ground_truth_is_a_copy(write_coco, tree):
    dataset = load_coco(write_coco(tree))
    dataset.ground_truth()["annotations"][0]["area"] = -1
    assert dataset.annotations[0]["area"] == 77


# types of values


@pytest.mark.parametrize("off", ["0", "False", "false", 0.0, False, None])
@pytest.mark.parametrize("field", ["iscrowd", "ignore", "difficult"])
def test_a_flag_that_is_off_in_another_type_leaves_the_box_in_training(write_coco, tree, field, off):
    tree["annotations"] = [annotation([0, 0, 4, 5], **{field: off})]
    dataset = load_coco(write_coco(tree))
    assert len(dataset.images[0].boxes) == 1
    assert dataset.annotations[0]["iscrowd"] == 0


@pytest.mark.parametrize("on", ["1", "True", "true", 1.0, True, 1])
@pytest.mark.parametrize("field", ["iscrowd", "ignore", "difficult"])
def test_a_flag_that_is_on_in_another_type_leaves_the_box_out_of_training(write_coco, tree, field, on):
    tree["annotations"].append(annotation([0, 0, 4, 5], **{field: on}))
    dataset = load_coco(write_coco(tree))
    assert dataset.report.objects == 1
    kind = "crowd boxes" if field == "iscrowd" else "boxes marked 'ignore' or 'difficult'"
    assert f"1 {kind} left out of training (annotation 6 in a.png)" in dataset.report.summary()
    assert [entry["iscrowd"] for entry in dataset.annotations] == [0, int(field == "iscrowd")]


@pytest.mark.parametrize("field", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize("value", ["no", "", 2, 0.5, [], {"a": 1}])
def test_other_flags_are_refused(write_coco, tree, field, value):
    tree["annotations"] = [annotation([0, 0, 4, 5], **{field: value})]
    with pytest.raises(DataError, match=f"annotation 6: '{field}' must be 0, 1, false or true, not"):
        load_coco(write_coco(tree))


@pytest.mark.parametrize("convert", [str, float, lambda id_: f"{id_}.0", int])
def test_references_that_differ_only_in_type_are_matched_and_reported(write_coco, tree, convert):
    tree["images"][0]["id"] = 7
    tree["annotations"] = [annotation([0, 0, 4, 5], image_id=convert(7), category_id=convert(3))]
    dataset = load_coco(write_coco(tree))
    assert dataset.images[0].labels.tolist() == [0]
    assert (dataset.annotations[0]["image_id"], dataset.annotations[0]["category_id"]) == (7, 3)
    counts = dataset.report.counts
    for field in ("image_id", "category_id"):
        assert counts[f"values of '{field}' of another type than the 'id' they mean"] == (convert is not int)


def test_text_ids_of_images_match_numbers_and_remain_texts(write_coco, tree):
    tree["images"][0]["id"], tree["images"][1]["id"] = "000007", "8"
    tree["annotations"] = [annotation([0, 0, 4, 5], image_id=7)]
    dataset = load_coco(write_coco(tree))
    assert [image.id for image in dataset.images] == ["000007", "8"]
    assert dataset.annotations[0]["image_id"] == "000007"


def test_category_ids_of_other_types_are_read_as_integers(write_coco, tree):
    tree["categories"] = [{"id": "90", "name": "late"}, {"id": 3.0, "name": "early"}]
    dataset = load_coco(write_coco(tree))
    assert dataset.classes == (ClassInfo(3, "early"), ClassInfo(90, "late"))
    assert dataset.report.counts["category ids taken as integers"] == 2
    assert dataset.report.objects == 1


def test_categories_that_share_a_name_are_reported(write_coco, tree):
    tree["categories"][0]["name"] = "early"
    summary = load_coco(write_coco(tree)).report.summary()
    assert "2 categories that share their name with another (early, id 3, early, id 90)" in summary


def test_control_characters_of_names_are_escaped_in_the_report(write_coco, tree):
    tree["categories"][1]["name"] = "ear\x1b[2Jly\u202e"
    tree["images"][1] = {"id": 2, "file_name": "b.png", "width": 20, "height": 50}
    dataset = load_coco(write_coco(tree))
    assert dataset.classes[0].name == "ear\x1b[2Jly\u202e"
    assert dataset.report.summary().isprintable()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_item("images", file_name="\ud800.png"), r"needs an 'id' .* and a 'file_name' \(text that UTF-8"),
        (change_item("images", file_name="x" * 5000), r"needs an 'id' .* and a 'file_name'"),
        (change_item("images", file_name=["a.png"]), r"needs an 'id' .* and a 'file_name'"),
        (change_item("images", id=True), r"needs an 'id'"),
        (change_item("images", id=2**64), r"needs an 'id'"),
        (change_item("images", id={"a": 1}), r"needs an 'id'"),
        (change_item("categories", name="\ud800"), r"'name' of id 90 must be a text"),
        (change_item("categories", name=[1]), r"'name' of id 90 must be a text"),
        (change_item("categories", name=""), r"'name' of id 90 must be a text"),
        (change_item("categories", id="cat"), r"no integer 'id'"),
        (change_item("categories", id=2.5), r"no integer 'id'"),
        (change_item("annotations", area=1e300), r"'area' must be within ±1e\+15, not 1e\+300"),
        (change_item("annotations", bbox=[1, 2, 3, 10**18]), r"within ±1e15 each, not \[1, 2, 3, 1000000000000000000"),
        (change_item("annotations", bbox=["1", "2", "3", "4"]), r"not texts: \['1', '2', '3', '4'\]"),
        (change_item("annotations", bbox=[1, 2, 3, 4, 30]), r"not 5 numbers \(a rotated box\?\)"),
        (change_item("annotations", bbox=[]), r"not 0 numbers"),
        (change_item("annotations", bbox={"x": 1}), r"not \{'x': 1\}"),
        (change_item("annotations", bbox=[[1, 2], [3, 4]]), r"not \[\[1, 2\], \[3, 4\]\]"),
        (change_item("annotations", bbox=None, segmentation=[[1, 2]]), r"'segmentation' is neither polygons"),
    ],
)
def test_errors_describe_the_value_of_the_field(write_coco, tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message) as caught:
        load_coco(write_coco(tree))
    assert str(caught.value).isprintable()
    assert "instances.json" in str(caught.value)


# boxes of another format


def annotations_of(boxes):
    return [annotation(box, id=i) for i, box in enumerate(boxes)]


VALID_BOXES = [[4, 3, 10, 12], [20, 5, 15, 20], [18, 10, 12, 9], [1, 1, 30, 25], [12, 14, 20, 10], [2, 8, 9, 9]]


@pytest.mark.parametrize(
    ("change_box", "cause"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "they look like corners [x0, y0, x1, y1]"),
        (lambda x, y, w, h: [x / 40, y / 30, w / 40, h / 30], "they look like shares of the image (0–1)"),
        (lambda x, y, w, h: [2.5 * x, 2.5 * y, 2.5 * w, 2.5 * h], "'width' and 'height' those of the image that was"),
    ],
)
def test_boxes_of_another_format_are_reported_with_the_likely_cause(write_coco, tree, change_box, cause):
    tree["annotations"] = annotations_of([change_box(*box) for box in VALID_BOXES])
    summary = load_coco(write_coco(tree)).report.summary()
    assert cause in summary
    assert " of 6 boxes are clipped, outside or below one pixel: " in summary


def test_valid_boxes_cause_no_hint_even_if_a_third_of_them_is_clipped(write_coco, tree):
    tree["annotations"] = annotations_of([*VALID_BOXES[:4], [-3, 5, 10, 10], [35, 5, 10, 10]])
    dataset = load_coco(write_coco(tree))
    assert dataset.report.counts["boxes clipped to the image for training"] == 2
    assert dataset.report.hint == ""
    tree["annotations"] += annotations_of([[36, 5, 10, 10]])
    assert load_coco(write_coco(tree)).report.hint.startswith("3 of 7 boxes are clipped")


def test_rounding_at_the_border_causes_no_hint(write_coco, tree):
    tree["annotations"] = annotations_of([[0.1, 0.2, 39.9 + 1e-9, 29.8]] * 4)
    assert load_coco(write_coco(tree)).report.hint == ""


@pytest.mark.parametrize("missing", [{}, {"bbox": None}])
def test_a_missing_bbox_is_taken_from_the_polygon_or_mask(write_coco, tree, missing):
    bare = {"image_id": ID, "category_id": 3, "area": 50, "iscrowd": 0, **missing}
    tree["annotations"] = [
        {**bare, "segmentation": [[1, 2, 11, 2, 11, 22]]},
        {**bare, "segmentation": {"size": [30, 40], "counts": [31, 10, 20, 10, 1129]}},
    ]
    dataset = load_coco(write_coco(tree))
    assert [entry["bbox"] for entry in dataset.annotations] == [[1, 2, 10, 20], [1, 1, 2, 10]]
    assert dataset.images[0].boxes.tolist() == [[1, 2, 11, 22], [1, 1, 3, 11]]
    assert dataset.report.counts["missing 'bbox' taken from 'segmentation'"] == 2


def test_segmentations_are_not_kept(write_coco, tree):
    tree["annotations"] = [annotation([1, 2, 3, 4], segmentation=[[1, 2, 11, 2, 11, 22]], attributes={"a": "b"})]
    kept = load_coco(write_coco(tree)).annotations[0]
    assert set(kept) == {"id", "image_id", "category_id", "bbox", "area", "iscrowd"}


def test_boxes_without_area_in_float32_are_left_out_of_training(write_coco, tree):
    tree["annotations"] = [annotation([30, 2, 1e-7, 4])]
    dataset = load_coco(write_coco(tree))
    assert len(dataset.images[0].boxes) == 0
    assert dataset.report.counts["boxes without area or outside the image left out of training"] == 1


# test sets


def test_a_file_without_the_list_annotations_is_a_test_set(write_coco, tree):
    del tree["annotations"]
    dataset = load_coco(write_coco(tree))
    assert not dataset.has_annotations
    assert dataset.annotations == ()
    assert dataset.report.summary() == "2 images, 0 objects; no annotations."


def test_a_file_with_an_empty_list_of_annotations_is_not_a_test_set(write_coco, tree):
    tree["annotations"] = []
    assert load_coco(write_coco(tree)).has_annotations
