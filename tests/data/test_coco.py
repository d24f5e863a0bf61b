"""Annotation files, sound and broken."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood_jax.config import SplitConfig
from tood_jax.data.coco import ClassInfo, load_coco
from tood_jax.data.errors import BrokenImageError, DataError

ID = 9_007_199_254_740_993  # of the first image; a float can't hold it


def annotation(bbox, **more):
    return {"id": 6, "image_id": ID, "category_id": 3, "bbox": bbox, "area": 1, "iscrowd": 0, **more}


def test_a_sound_file(coco, tree):
    found = load_coco(coco(tree))
    assert found.classes == (ClassInfo(3, "early"), ClassInfo(90, "late"))
    first, second = found.images
    assert (first.id, first.path.name, first.height, first.width) == (ID, "a.png", 30, 40)
    np.testing.assert_array_equal(first.boxes, np.array([[1, 2, 11, 22]], np.float32))
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [1]
    assert second.id == 2
    assert second.boxes.shape == (0, 4)
    assert second.labels.dtype == np.int32
    assert found.report.summary() == (
        "2 images, 1 objects; 1 images without objects (b.png); 1 classes without objects (early)."
    )


def test_crowds_train_nobody_and_stay_in_the_ground_truth(coco, tree):
    tree["annotations"].append(annotation([0, 0, 5, 5], iscrowd=1))
    found = load_coco(coco(tree))
    assert len(found.images[0].boxes) == 1
    assert [one["iscrowd"] for one in found.ground_truth()["annotations"]] == [0, 1]
    assert found.report.counts["crowd boxes left out of training"] == 1


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-5, -6, 10, 10], [0, 0, 5, 4]),
        ([30, 20, 100, 100], [30, 20, 40, 30]),
        ([1.5, 2.25, 3, 4], [1.5, 2.25, 4.5, 6.25]),
    ],
)
def test_boxes_are_clipped_to_the_image(coco, tree, bbox, expected):
    tree["annotations"] = [annotation(bbox)]
    found = load_coco(coco(tree))
    assert found.images[0].boxes.tolist() == [expected]
    assert found.report.counts["boxes clipped to the image"] == (bbox != [1.5, 2.25, 3, 4])


@pytest.mark.parametrize("bbox", [[5, 5, 0, 3], [5, 5, 3, -1], [40, 0, 5, 5], [-9, 0, 9, 5], [0, 31, 5, 5]])
def test_boxes_without_area_or_outside_are_dropped_everywhere(coco, tree, bbox):
    tree["annotations"].append(annotation(bbox))
    found = load_coco(coco(tree))
    assert len(found.images[0].boxes) == 1
    assert len(found.ground_truth()["annotations"]) == 1
    assert "1 boxes without area or outside the image dropped (annotation 6 in a.png)" in found.report.summary()


def test_what_is_missing_is_filled_in(coco, tree):
    bare = {"image_id": ID, "category_id": 3, "bbox": [0, 0, 4, 5]}
    tree["annotations"] = [bare, {**bare, "area": None}]
    del tree["images"][1]["width"]
    tree["images"][1]["height"] = None
    found = load_coco(coco(tree))
    assert (found.images[1].height, found.images[1].width) == (50, 20)
    filled = found.ground_truth()["annotations"]
    assert [(one["id"], one["area"], one["iscrowd"]) for one in filled] == [(1, 20, 0), (2, 20, 0)]
    counts = found.report.counts
    assert counts["missing 'area' taken from the box"] == counts["missing 'iscrowd' taken as 0"] == 2
    assert counts["image sizes read from the files"] == 1


def test_a_size_that_can_not_be_read_names_the_file(coco, tree):
    tree["images"][1] = {"id": 3, "file_name": "gone.png"}
    with pytest.raises(BrokenImageError, match=r"gone\.png can't be read"):
        load_coco(coco(tree))


def test_duplicate_annotation_ids_are_numbered_anew(coco, tree):
    tree["annotations"] = [annotation([0, 0, 4, 5]), annotation([1, 1, 4, 5]), annotation([2, 2, 4, 5], id=[1])]
    found = load_coco(coco(tree))
    assert [one["id"] for one in found.annotations] == [1, 2, 3]
    assert found.report.counts["duplicate annotation ids numbered anew"] == 1


def test_missing_annotation_ids_are_no_duplicates(coco, tree):
    bare = {"image_id": ID, "category_id": 3, "bbox": [0, 0, 4, 5], "area": 20, "iscrowd": 0}
    tree["annotations"] = [bare, dict(bare)]
    found = load_coco(coco(tree))
    assert [one["id"] for one in found.annotations] == [1, 2]
    assert not any("duplicate" in what for what in found.report.counts)


@pytest.mark.parametrize("area", [0, -3, True, "12", float("nan")])
def test_an_area_that_is_none_is_taken_from_the_box(coco, tree, area):
    tree["annotations"] = [annotation([0, 0, 4, 5], area=area)]
    assert load_coco(coco(tree)).annotations[0]["area"] == 20


def test_a_split_without_a_box_says_so(coco, tree):
    tree["annotations"] = [annotation([0, 0, 0, 0])]
    found = load_coco(coco(tree))
    assert [len(one.labels) for one in found.images] == [0, 0]
    assert "2 images, 0 objects; no box is left, so nothing can be learnt" in found.report.summary()
    assert "2 classes without objects (early, late)" in found.report.summary()


def test_annotations_of_unknown_images_are_dropped(coco, tree):
    tree["annotations"] += [annotation([0, 0, 4, 5], image_id=image) for image in (12, None, [1])]
    found = load_coco(coco(tree))
    assert found.report.counts["annotations of unknown images dropped"] == 3
    assert found.report.objects == 1


def test_sub_folders(coco, tree):
    tree["images"].append({"id": 3, "file_name": "deep/c.png", "width": 10, "height": 10})
    assert load_coco(coco(tree)).images[2].path.is_file()


def test_the_report_names_three_examples(coco, tree):
    tree["annotations"] = [annotation([0, 0, 0, 0], id=number) for number in range(5)]
    summary = load_coco(coco(tree)).report.summary()
    assert "5 boxes without area or outside the image dropped (annotation 0 in a.png, " in summary
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
        (again("images"), r"images: id 9007199254740993 is there twice \(a\.png and a\.png\)"),
        (again("categories"), r"categories: id 90 is there twice"),
        (change_item("images", file_name="wrong/a.png"), r"first image .* does not exist: set data\.\*\.images"),
        (change_item("annotations", category_id=4), r"annotation 5 has category_id 4, which 'categories' doesn't"),
        (change_item("annotations", category_id=[4]), r"has category_id \[4\]"),
        (change_item("annotations", bbox=[1, 2, 3]), r"annotation 5: 'bbox' must be four finite numbers"),
        (change_item("annotations", bbox=[1, 2, 3, "4"]), r"four finite numbers"),
        (change_item("annotations", bbox=[1, 2, 3, float("nan")]), r"four finite numbers"),
        (change_item("annotations", bbox=[1, 2, 3, float("inf")]), r"four finite numbers"),
        (change_item("annotations", bbox=None), r"four finite numbers"),
    ],
)
def test_what_can_not_be_mended_is_one_sentence_that_names_the_file(coco, tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message) as caught:
        load_coco(coco(tree))
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{'images': 1}", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a JSON list, not COCO's object"),
        (b"{}", "has no list 'images'"),
    ],
)
def test_files_that_are_not_coco(coco, content, message):
    with pytest.raises(DataError, match=message):
        load_coco(coco(content))


def test_missing_files_and_folders_name_the_setting(coco, tree, tmp_path):
    split = coco(tree)
    with pytest.raises(DataError, match=r"no annotation file .*none\.json: set data\.\*\.annotations"):
        load_coco(SplitConfig(split.images, str(tmp_path / "none.json")))
    with pytest.raises(DataError, match=r"no image folder .*nowhere: set data\.\*\.images"):
        load_coco(SplitConfig(str(tmp_path / "nowhere"), split.annotations))


def test_the_ground_truth_can_be_evaluated(coco, tree):
    """By pycocotools itself, although ids are text or large and fields were missing; truth as detections gives 1."""
    tree["images"][0]["id"], tree["images"][1]["id"] = "one", "two"
    tree["annotations"] = [
        {"image_id": "one", "category_id": 90, "bbox": [1, 2, 10, 20]},
        {"image_id": "two", "category_id": 3, "bbox": [0, 0, 10, 40]},
    ]
    truth = load_coco(coco(tree)).ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        target = COCO()
        target.dataset = truth
        target.createIndex()
        found = target.loadRes([{**one, "score": 0.9} for one in truth["annotations"]])
        evaluation = COCOeval(target, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_the_ground_truth_is_a_copy(coco, tree):
    found = load_coco(coco(tree))
    found.ground_truth()["annotations"][0]["area"] = -1
    assert found.annotations[0]["area"] == 77
