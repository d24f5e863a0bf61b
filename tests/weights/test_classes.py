"""Category ids of weights from elsewhere."""

import json

import pytest

from tood_jax.data.coco import ClassInfo
from tood_jax.data.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.weights.classes import find_classes, read_categories
from tood_jax.weights.mapping import WeightsError


@pytest.fixture
def annotations(tmp_path):
    """Categories out of the order of their ids, as some files have them."""
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}]}))
    return str(file)


def test_cocos_own():
    """As in COCO's instances files: 80 names, ids up to 90 with ten gaps, labels in the order of the ids."""
    assert len(COCO_CLASSES) == len({one.name for one in COCO_CLASSES}) == 80
    assert [one.id for one in COCO_CLASSES] == sorted(one.id for one in COCO_CLASSES)
    known = {
        1: "person",
        13: "stop sign",
        27: "backpack",
        44: "bottle",
        67: "dining table",
        84: "book",
        90: "toothbrush",
    }
    assert known.items() <= dict(COCO_CLASSES).items()
    assert find_classes("x.pth", 80, list(COCO_NAMES), None, "nowhere.json")[0] == COCO_CLASSES


def test_labels_follow_the_ids(annotations):
    assert read_categories(annotations) == (ClassInfo(2, "dog"), ClassInfo(9, "cat"))
    for names in (None, ("dog", "cat")):
        assert find_classes("x.pth", 2, names, None, annotations)[0] == (ClassInfo(2, "dog"), ClassInfo(9, "cat"))


def test_what_this_package_stored_rules(annotations):
    stored = [{"id": 7, "name": "u"}, {"id": 8, "name": "v"}]
    assert find_classes("x", 2, ("u", "v"), stored, annotations)[0] == (ClassInfo(7, "u"), ClassInfo(8, "v"))
    assert find_classes("x", 3, None, stored, annotations)[0] is None
    assert find_classes("x", 2, None, [{"id": "7"}], annotations)[0] is None


@pytest.mark.parametrize(
    ("count", "names", "exists", "said"),
    [
        (2, ("cat", "dog"), True, "(dog, cat) are not those of x.pth (cat, dog)"),  # other labels: never guessed
        (3, None, True, "(dog, cat) are not those of x.pth (3 classes)"),
        (2, ("cat", "dog"), False, "names its classes but not their ids, and there is no annotation file"),
        (2, None, False, "doesn't say which its classes are, and there is no annotation file"),
        (3, ("cat", "dog"), True, "names 2 classes, but its classifier has 3"),
    ],
)
def test_what_cannot_be_known_is_said(annotations, count, names, exists, said):
    classes, why = find_classes("x.pth", count, names, None, annotations if exists else "nowhere.json")
    assert classes is None
    assert said in why


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"categories": [{"id": 1}]}'])
def test_what_is_no_instances_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(WeightsError, match="no list of categories"):
        read_categories(str(tmp_path / "x.json"))
