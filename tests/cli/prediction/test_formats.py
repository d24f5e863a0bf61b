"""Formats of results, each read back by another library."""

import csv
import json

import numpy as np
import pytest

from tests.sets import CLASSES
from tood_jax.cli.prediction.formats import FORMATS, open_writers
from tood_jax.cli.prediction.image_search import LABELS

ROWS = [
    {
        "path": "x/a.jpg",
        "width": 200,
        "height": 100,
        "boxes": [[0.5, 10.0, 100.25, 60.0], [1.0, 2.0, 3.0, 4.0]],
        "scores": [0.75, 0.1],
        "labels": [2, 0],
        "names": ["star", "disc"],
        "notes": ["it is unusual"],
    },
    {"path": "b,\udcff.jpg", "error": "b can't be read"},
    {"path": "y/A.png", "width": 8, "height": 8, "boxes": [], "scores": [], "labels": [], "names": []},
]


@pytest.fixture
def results(tmp_path):
    (tmp_path / "parts").mkdir()
    pytest.importorskip("pyarrow")
    with open_writers(list(FORMATS), tmp_path / "parts", tmp_path, CLASSES) as write:
        for row in ROWS:
            write(row)
        assert not (tmp_path / "detections.json").exists()
    assert list((tmp_path / "parts").iterdir()) == []
    return tmp_path


def test_json_lines(results):
    lines = (results / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS


def test_coco(results):
    rows = json.loads((results / "detections.json").read_text())
    star = {"image_id": "x/a.jpg", "category_id": 5, "bbox": [0.5, 10, 99.75, 50], "score": 0.75, "category": "star"}
    assert rows[0] == star
    assert [row["category"] for row in rows] == ["star", "disc"]


def test_csv(results):
    with (results / "detections.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["star", "disc", "", ""]
    assert [float(rows[0][key]) for key in ("score", "x0", "y0", "x1", "y1")] == [0.75, 0.5, 10, 100.25, 60]
    assert rows[2]["error"] == "b can't be read"
    assert rows[3]["path"] == "y/A.png"


def test_yolo(results):
    """Of two images whose names differ in case only, one gets a number; a broken one has no file."""
    assert sorted(path.name for path in (results / LABELS).glob("*.txt")) == ["A_2.txt", "a.txt"]
    values = np.loadtxt(results / LABELS / "a.txt")
    np.testing.assert_allclose(values[0], [2, 0.251875, 0.35, 0.49875, 0.5, 0.75], rtol=1e-5)
    assert (results / LABELS / "A_2.txt").read_text() == ""


def test_parquet(results):
    from pyarrow import parquet

    rows = parquet.read_table(results / "detections.parquet").to_pylist()
    assert [row["error"] for row in rows] == [None, "b can't be read", None]
    assert rows[0]["boxes"] == ROWS[0]["boxes"]
    assert rows[0]["names"] == ["star", "disc"]
    np.testing.assert_allclose(rows[0]["scores"], ROWS[0]["scores"])


def test_no_images_give_empty_results(tmp_path):
    (tmp_path / "parts").mkdir()
    with open_writers(list(FORMATS), tmp_path / "parts", tmp_path, CLASSES):
        pass
    assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_each_format_recognizes_its_own_file(results):
    for name in ("json", "jsonl", "csv", "parquet"):
        path = results / FORMATS[name].NAME
        own = [other for other in FORMATS if FORMATS[other].is_own(path, path.read_bytes())]
        assert own == [name]
