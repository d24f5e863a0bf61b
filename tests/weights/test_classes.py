"""Category ids of imported weights."""

import json

import pytest

from tood_jax.data.dataset import ClassInfo
from tood_jax.data.formats.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.weights.classes import find_classes, read_categories
from tood_jax.weights.mapping import WeightsError


@pytest.fixture
def annotations(tmp_path):
    """A file whose categories are not in the order of their ids."""
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}]}))
    return str(file)


def test_classes_of_coco():
    """As in COCO's instances files: 80 names, ids up to 90 with ten gaps, labels in the order of the ids."""
    assert len(COCO_CLASSES) == len({category.name for category in COCO_CLASSES}) == 80
    assert [category.id for category in COCO_CLASSES] == sorted(category.id for category in COCO_CLASSES)
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


def test_stored_classes_have_precedence(annotations):
    stored = [{"id": 7, "name": "u"}, {"id": 8, "name": "v"}]
    assert find_classes("x", 2, ("u", "v"), stored, annotations)[0] == (ClassInfo(7, "u"), ClassInfo(8, "v"))
    assert find_classes("x", 3, None, stored, annotations)[0] is None
    assert find_classes("x", 2, None, [{"id": "7"}], annotations)[0] is None


@pytest.mark.parametrize(
    ("count", "names", "exists", "message"),
    [
        (
            2,
            ("cat", "dog"),
            True,
            "(dog, cat) are not those of x.pth (cat, dog)",
        ),  # another order
        (3, None, True, "(dog, cat) are not those of x.pth (3 classes)"),
        (2, ("cat", "dog"), False, "has the names of its classes but not their ids, and there is no annotation file"),
        (2, None, False, "does not name its classes, and there is no annotation file"),
        (3, ("cat", "dog"), True, "names 2 classes, but its classifier has 3"),
    ],
)
def test_the_reason_for_unknown_classes(annotations, count, names, exists, message):
    classes, reason = find_classes("x.pth", count, names, None, annotations if exists else "nowhere.json")
    assert classes is None
    assert message in reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no list of categories"),
        ('{"images": []}', "no list of categories"),
        ('{"categories": {"id": 1, "name": "x"}}', "no list of categories"),
        ('{"categories": [7]}', "no list of categories"),
        ('{"categories": [{"id": 1}]}', "no list of categories"),
        ('{"categories": [{"id": true, "name": "x"}]}', "no list of categories"),
        ('{"categories": [{"id": 1, "name": "\\ud800"}]}', "no list of categories"),
        ('{"categories": [{"id": 1e300, "name": "x"}]}', "no list of categories"),
        ("", "is empty, not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ("version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        ("<html>", "is an HTML or XML page"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_categories(str(tmp_path / "x.json"))


def test_control_characters_of_class_names_do_not_reach_the_message(annotations):
    reason = find_classes("x.pth", 2, ("\x1b[2J", "b"), None, annotations)[1]
    assert reason.isprintable()
