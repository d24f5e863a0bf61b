"""Annotation files with arbitrary damage: they load and can be evaluated, or raise a DataError."""

import contextlib
import copy
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tood_jax.config import SplitConfig
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import load_coco
from tood_jax.evaluation.coco_ap import coco_results, evaluate, format_table
from tood_jax.weights.classes import read_categories
from tood_jax.weights.mapping import WeightsError

VALID = {
    "info": {"year": 2026},
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
        {
            "id": 2,
            "image_id": 2,
            "category_id": 9,
            "segmentation": [[1, 1, 9, 1, 9, 30]],
            "bbox": [1, 1, 8, 29],
            "area": 116.5,
            "iscrowd": 0,
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 9,
            "segmentation": {"size": [50, 20], "counts": [100, 20, 880]},
            "ignore": 1,
            "iscrowd": 1,
        },
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
}

DEEP = "@deep"  # takes the place of deeply nested lists, which copy.deepcopy and json.dumps cannot handle
HUGE = st.sampled_from([2**63, 2**64, -(2**64), 10**30, 1e15, 1e16, 1e308, -1e308, 1e-320, 10**4000, -0.0])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", "0", "1", "3", "3.0", "-1", "true", "False", "\ud800", "a\0b", "../a.png", "/etc/passwd", "\x1b[2J", "\u202e"]
)
SCALARS = st.none() | st.booleans() | st.integers(-5, 99) | HUGE | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3))
ANYTHING = VALUES | st.just(DEEP) | st.just("x" * 5000) | st.just([0] * 50)


def paths_in(tree, path=()):
    """Paths to all values of a tree, down to the numbers of a polygon."""
    yield path
    if len(path) == 5:
        return
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from paths_in(value, (*path, key))


@st.composite
def mutated(draw):
    """A valid instances JSON after one to four changes: values replaced, removed, repeated or exchanged."""
    tree = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(paths_in(tree))[1:]))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "exchange"])):
            case "remove":
                del parent[path[-1]]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            case "exchange":
                other = tree
                for key in draw(st.sampled_from(list(paths_in(tree)))):
                    other = other[key]
                parent[path[-1]] = copy.deepcopy(other)
            case _:
                parent[path[-1]] = copy.deepcopy(draw(ANYTHING))
    return tree


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    cv2.imwrite(str(folder / "a.png"), np.zeros((30, 40, 3), np.uint8))
    cv2.imwrite(str(folder / "b.png"), np.zeros((50, 20, 3), np.uint8))
    return folder


def use(dataset):
    """Do what programs do with a data set."""
    assert dataset.report.summary().isprintable()
    for image in dataset.images:
        assert image.boxes.shape == (len(image.labels), 4)
        assert np.isfinite(image.boxes).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()
        assert (image.labels < len(dataset.classes)).all()
    detections = [(np.array([[0, 0, 9, 9.0]]), np.ones(1), np.zeros(1, int))] * len(dataset.images)
    results = coco_results(detections, [image.id for image in dataset.images], [info.id for info in dataset.classes])
    assert json.loads(json.dumps(results)) == results
    table = format_table(evaluate(dataset.ground_truth(), results), [info.name for info in dataset.classes])
    table.encode()


def check(split):
    try:
        dataset = load_coco(split, "skip")
    except DataError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        assert len(message) < 1500
        message.encode()
    else:
        use(dataset)


@settings(max_examples=300, deadline=None)
@given(tree=mutated(), depth=st.integers(1, 1200))
def test_a_damaged_tree_loads_or_raises_a_data_error(images, tree, depth):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        file.write_text(json.dumps(tree).replace(f'"{DEEP}"', "[" * depth + "]" * depth))
        check(SplitConfig(str(images), str(file)))
        with contextlib.suppress(WeightsError):
            read_categories(str(file))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_bytes_load_or_raise_a_data_error(images, data):
    content = bytearray(json.dumps(VALID).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.just(len(content)) | st.integers(0, len(content))) :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances.json"
        file.write_bytes(content)
        check(SplitConfig(str(images), str(file)))


def test_the_valid_tree_loads(images, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(VALID))
    dataset = load_coco(SplitConfig(str(images), str(tmp_path / "a.json")))
    use(dataset)
    assert dataset.report.objects == 2
