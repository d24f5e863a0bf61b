"""Single values of an instances JSON, of every JSON type."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from tood_jax.data.formats.coco_values import IdTable, as_flag, as_id, segmentation_box, short_repr

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["size", "counts", "x"]), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "0.0", "false", "False", "FALSE", " 0"])
def test_flags_that_are_off(value):
    assert as_flag(value) is False


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "1.0", "true", "True", "TRUE"])
def test_flags_that_are_on(value):
    assert as_flag(value) is True


@pytest.mark.parametrize("value", [None, 2, -1, 0.5, "", "no", "2", [], [1], {}, 10**400, float("inf")])
def test_other_values_are_not_flags(value):
    assert as_flag(value) is None


@pytest.mark.parametrize("reference", [3, 3.0, "3", "3.0", " 3", "+3", "03"])
@pytest.mark.parametrize("id_", [3, 3.0, "3", "3.0"])
def test_ids_that_differ_only_in_type_match(id_, reference):
    table = IdTable([id_, 4])
    assert table.find(reference) == id_
    assert type(table.find(reference)) is type(id_)


def test_an_ambiguous_reference_matches_no_id():
    table = IdTable(["3", "03", "5"])
    assert table.find("03") == "03"
    assert table.find(3) is None
    assert table.find(5) == "5"


@pytest.mark.parametrize("reference", [None, True, [], {}, "", "x", 4, "1e0", "३", 10**400, float("nan"), float("inf")])
def test_other_values_match_no_id(reference):
    assert IdTable([3, 1]).find(reference) is None


@given(st.lists(st.integers(0, 2**64 - 1) | st.floats(-99, 99) | st.text(min_size=1), unique=True), JSON)
def test_each_id_matches_itself_and_no_value_raises(ids, reference):
    table = IdTable(ids)
    assert [table.find(id_) for id_ in ids] == ids
    found = table.find(reference)
    assert found is None or found in ids


@pytest.mark.parametrize("value", [True, None, "", "\ud800", [], 2**64, -(2**63) - 1, float("inf"), "x" * 5000])
def test_values_that_are_not_ids(value):
    assert as_id(value) is None


@pytest.mark.parametrize("value", [0, -5, 2**64 - 1, 1.5, 9007199254740992.0 * 4, "a", "0"])
def test_an_id_is_returned_unchanged(value):
    assert as_id(value) == value
    assert type(as_id(value)) is type(value)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans()))
def test_the_box_of_a_mask_is_that_of_pycocotools(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    compressed = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.flatten("F").astype(int), [-1]])))
    plain = {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], runs])).tolist()}
    expected = coco_mask.toBbox(rle).tolist()
    if mask.any():  # an empty mask has no box
        assert list(segmentation_box(compressed)) == list(segmentation_box(plain)) == expected
    json.dumps(compressed)


def test_the_box_of_a_mask_with_long_runs():
    mask = np.zeros((1000, 1200), np.uint8, order="F")
    mask[100:900, 3] = mask[5:7, 1100:1150] = 1
    rle = coco_mask.encode(mask)
    assert segmentation_box({"size": [1000, 1200], "counts": rle["counts"].decode()}) == (3, 5, 1147, 895)


def test_the_box_of_polygons():
    assert segmentation_box([[1, 2, 11, 2, 11, 22], [5, 5, 6.5, 40, 7, 7]]) == (1, 2, 10, 38)


@pytest.mark.parametrize(
    "segmentation",
    [
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [1, 2, 3, 4, 5, 6],
        [[1, 2, 3, 4, 5, "6"]],
        {},
        {"size": [0, 5], "counts": [5]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": [-1, 5]},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "\x00\xff"},
        {"size": [2, 2, 2], "counts": [8]},
        "polygon",
        7,
    ],
)
def test_an_invalid_segmentation_has_no_box(segmentation):
    assert segmentation_box(segmentation) is None


@given(JSON | st.fixed_dictionaries({"size": st.just([4, 4]), "counts": st.text() | st.lists(st.integers())}))
def test_no_segmentation_raises(segmentation):
    box = segmentation_box(segmentation)
    assert box is None or len(box) == 4


def test_the_representation_of_any_value_is_short():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "\x1b[31m" * 1000, list(range(10**6)), {"a": {"b": "\n"}}):
        text = short_repr(value)
        assert len(text) <= 120
        assert text.isprintable()
