"""results.csv and results.png, from the log of a run."""

import csv
import json

import cv2

from tood_jax.report.history import read_evaluations, write_history

LINES = [
    {"step": 2, "kind": "train", "loss": 3.0},
    {"step": 4, "kind": "train", "loss": 2.5},
    {"step": 4, "kind": "eval", "AP": 0.25, "AP50": 0.5, "APs": None, "loss": 2.75, "class_ap": [0.25]},
    {"step": 6, "kind": "train", "loss": "nan"},
    {"step": 6, "kind": "eval", "AP": 0.5, "AP50": "nan"},
]


def test_each_evaluation_is_a_row_with_the_training_loss_before_it(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, LINES)) + '\n[1]\n{"step": "x"}\n{"step": 8, "kind": "eval", "A')
    first, second = read_evaluations(log)
    assert [first[name] for name in ("step", "AP", "AP50", "APs", "loss", "train_loss")] == [
        4,
        0.25,
        0.5,
        None,
        2.75,
        2.5,
    ]
    assert [second[name] for name in ("step", "AP", "AP50", "loss", "train_loss")] == [6, 0.5, None, None, None]
    write_history(tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["step"] for row in rows] == ["4", "6"]
    assert [row["loss"] for row in rows] == ["2.75", ""]
    assert "loss_cls" not in rows[0]
    assert cv2.imread(str(tmp_path / "results.png")) is not None


def test_a_run_without_evaluations_has_an_empty_table(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    write_history(tmp_path)
    assert (tmp_path / "results.csv").read_text().startswith("step,AP,")
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1
