"""AP equals that of pycocotools on the same annotation file and results, for any boxes and ids."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tood_jax.config import SplitConfig
from tood_jax.data.formats.coco import load_coco
from tood_jax.evaluation.coco_ap import HAS_HOTCOCO, coco_results, evaluate, write_results

ENGINES = ["pycocotools", *(["hotcoco"] if HAS_HOTCOCO else [])]
SIDE = 120  # pixels of every image

numbers = st.floats(-60, 180).map(lambda x: round(x, 2)) | st.integers(-60, 180)
sizes = st.floats(0, 120).map(lambda x: round(x, 2)) | st.sampled_from([0, 0.0, -3, 0.25, 500])
boxes = st.tuples(numbers, numbers, sizes, sizes).map(list)
areas = st.floats(0, 12_000) | st.sampled_from([0, -5, 1, 1024, 9216, 1e11])
flags = st.sampled_from([0, 0, 0, 0, 1, False, True, 0.0, 1.0])
scores = st.sampled_from([0.25, 0.5, 0.5000001, 0.75]) | st.floats(0, 1)  # with ties
small_ids = st.integers(-5, 60)
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def files(draw, ids=small_ids | INT64):
    """Instances files that pycocotools can read, with invalid values of all other kinds."""
    images = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    categories = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    annotations = []
    for number in draw(st.permutations(range(1, draw(st.integers(0, 10)) + 1))):
        is_unknown = draw(st.sampled_from([False] * 9 + [True]))
        image = draw(ids.filter(lambda id_: id_ not in images) if is_unknown else st.sampled_from(images))
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": draw(st.sampled_from(categories)),
                "bbox": draw(boxes),
                "area": draw(areas),
                "iscrowd": draw(flags),
            }
        )
        annotations[-1] |= draw(st.sampled_from([{}, {"ignore": 1}, {"difficult": True}, {"ignore": 0}]))
    return {
        "images": [{"id": id_, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i, id_ in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": id_, "name": f"class {i}"} for i, id_ in enumerate(categories)],
    }


@st.composite
def detections(draw, tree):
    """(boxes xyxy, scores, labels) of each image; some are objects of the file, moved a little."""
    found = []
    for image in tree["images"]:
        own = [one["bbox"] for one in tree["annotations"] if one["image_id"] == image["id"]]
        rows = []
        for _ in range(draw(st.integers(0, 5))):
            x, y, width, height = draw(st.sampled_from(own)) if own and draw(st.booleans()) else draw(boxes)
            moved = draw(st.sampled_from([0, 0, 0.5, 2, 8]))
            label = draw(st.integers(0, len(tree["categories"]) - 1))
            rows.append(([x + moved, y, x + moved + abs(width), y + abs(height)], draw(scores), label))
        found.append(
            (
                np.array([row[0] for row in rows], float).reshape(-1, 4),
                np.array([row[1] for row in rows], float),
                np.array([row[2] for row in rows], int),
            )
        )
    return found


def load(tree, folder):
    """Load the data set of a tree; its image files exist but are empty."""
    images = Path(folder) / "images"
    images.mkdir(exist_ok=True)
    for one in tree["images"]:
        (images / one["file_name"]).touch()
    file = Path(folder) / "instances.json"
    file.write_text(json.dumps(tree))
    return load_coco(SplitConfig(str(images), str(file)))


def results_of(dataset, found):
    return coco_results(found, [one.id for one in dataset.images], [one.id for one in dataset.classes])


def reference(annotations, results):
    """COCO's twelve numbers as a user computes them from two files; NaN in place of -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        truth.dataset.setdefault("info", {})
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats == -1, np.nan, evaluation.stats)


def twelve(metrics):
    return [value for name, value in metrics.numbers().items() if name != "AP90"]


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_all_numbers_equal_those_of_pycocotools_on_the_same_files(engine, data):
    tree = data.draw(files())
    with tempfile.TemporaryDirectory() as folder:
        dataset = load(tree, folder)
        results = results_of(dataset, data.draw(detections(tree)))
        metrics = evaluate(dataset.ground_truth(), results, engine)
        if not results:  # pycocotools can't read an empty list
            return
        write_results(results, Path(folder) / "results.json")
        expected = reference(Path(folder) / "instances.json", Path(folder) / "results.json")
    np.testing.assert_allclose(twelve(metrics), expected, rtol=0, atol=1e-12)


OTHER_IDS = {
    "unsigned": st.integers(2**63, 2**64 - 1) | st.integers(0, 2**64 - 1),
    "negative": st.integers(-(2**63), -1),
    "text": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    "float": st.floats(-1e6, 1e6),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", OTHER_IDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_other_ids_change_no_number(engine, kind, data):
    """Scores are distinct: of equal ones, pycocotools takes those of the image with the smaller id first."""
    tree = data.draw(files(small_ids))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    found = [
        (box, rng.permutation(len(score)) + rng.random(), label) for box, score, label in data.draw(detections(tree))
    ]
    images, categories = [one["id"] for one in tree["images"]], [one["id"] for one in tree["categories"]]
    others = OTHER_IDS[kind]
    image_of = dict(
        zip(images, data.draw(st.lists(others, min_size=len(images), max_size=len(images), unique=True)), strict=True)
    )
    integers = others if kind in ("unsigned", "negative") else INT64
    # Labels are in the order of the category ids, so that these keep theirs.
    new = sorted(data.draw(st.lists(integers, min_size=len(categories), max_size=len(categories), unique=True)))
    category_of = dict(zip(sorted(categories), new, strict=True))
    changed = {
        "images": [one | {"id": image_of[one["id"]]} for one in tree["images"]],
        "categories": [one | {"id": category_of[one["id"]]} for one in tree["categories"]],
        "annotations": [
            one | {"image_id": image_of[one["image_id"]], "category_id": category_of[one["category_id"]]}
            for one in tree["annotations"]
            if one["image_id"] in image_of
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        before, after = load(tree, folder), load(changed, folder)
        results = results_of(after, found)
        write_results(results, Path(folder) / "results.json")
        written = json.loads((Path(folder) / "results.json").read_text())
    assert [one["image_id"] for one in written] == [image_of[images[i]] for i, one in enumerate(found) for _ in one[1]]
    old = evaluate(before.ground_truth(), results_of(before, found), engine)
    np.testing.assert_equal(evaluate(after.ground_truth(), results, engine).to_dict(), old.to_dict())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ids", [(3, 2**63 + 5, 2**63 + 7), (-1, 2**64 - 1, 0), ("b", "a", "c"), ("b", 2**64 - 1, 1.5)])
def test_each_image_counts_whatever_its_id(engine, ids):
    """Unsigned 64-bit ids beside smaller ones become floats in NumPy, so that images vanished."""
    box, other = [0, 0, 40, 40], [60, 0, 40, 40]
    truth = {
        "images": [{"id": id_} for id_ in ids],
        "categories": [{"id": "z"}, {"id": -7}],
        "annotations": [
            {"id": 1, "image_id": ids[0], "category_id": "z", "bbox": box},
            {"id": 2, "image_id": ids[1], "category_id": -7, "bbox": box},
            {"id": 3, "image_id": ids[2], "category_id": "z", "bbox": other},
        ],
    }
    results = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, score in zip(ids, ("z", -7, "z"), (0.9, 0.8, 0.7), strict=True)
    ]
    metrics = evaluate(truth, results, engine)
    # -7 comes first, as numbers do; of the two z the first is found
    np.testing.assert_allclose(metrics.class_ap, (1, 51 / 101))
    np.testing.assert_allclose(metrics.AR100, 0.75)


def test_only_integers_from_1_reach_the_engine(monkeypatch):
    """hotcoco takes no other ids, and pycocotools takes unsigned 64-bit ones for floats."""
    seen = {}

    class Engine(COCOeval):
        def __init__(self, truth, found, kind):
            seen.update(truth=truth.dataset, found=found.dataset)
            super().__init__(truth, found, kind)

    monkeypatch.setattr("pycocotools.cocoeval.COCOeval", Engine)
    truth = {
        "images": [{"id": "img_9"}, {"id": "img_10"}],
        "categories": [{"id": 2**63 + 1, "name": "x"}],
        "annotations": [{"image_id": "img_9", "category_id": 2**63 + 1, "bbox": [0, 0, 5, 5]}],
    }
    result = {"image_id": "img_9", "category_id": 2**63 + 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    np.testing.assert_allclose(evaluate(truth, [result], "pycocotools").AP, 1)
    for tree in seen.values():
        assert [one["id"] for one in tree["images"]] == [1, 2]
        assert [one["id"] for one in tree["categories"]] == [1]
        assert {(one["image_id"], one["category_id"]) for one in tree["annotations"]} == {(2, 1)}
