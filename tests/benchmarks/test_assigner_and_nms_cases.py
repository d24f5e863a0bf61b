"""The cases assigners and nms."""

import numpy as np
import pytest

from benchmarks.cases import assigners, nms
from tests.benchmarks.timings import CANVAS, check_timing


def test_assigners(measured):
    report = measured(assigners, "--objects", "2", "70", "--no_peer", *CANVAS)
    check_assigners(report)


@pytest.mark.torch
def test_assigners_beside_torch(measured, capsys):
    report = measured(assigners, "--objects", "2", "70", *CANVAS)
    check_assigners(report)
    for row in report["results"]:
        check_timing(row["torch"])
        assert row["torch_memory"] >= 0
    assert "torch, ms" in capsys.readouterr().out


def check_assigners(report):
    assert [(row["assigner"], row["objects"]) for row in report["results"]] == [
        ("task-aligned assigner", 2),
        ("task-aligned assigner", 70),
        ("ATSS", 2),
        ("ATSS", 70),
    ]
    for row in report["results"]:
        check_timing(row)
        assert row["positives"] > 0
        assert row["program"]["memory"]["temporaries"] > 0
        assert row["memory_in_one_piece"]["temporaries"] > 0


def test_nms(measured):
    report = measured(nms, "--candidates", "50", "300", "--detections=20")
    for row, count in zip(report["results"], (50, 300), strict=True):
        assert row["candidates"] == count
        assert row["same_boxes"]
        assert 0 < row["kept"] <= 20
        check_timing(row["ours"])
        check_timing(row["numpy"])


def test_greedy_nms_by_hand():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.8, 0.1], np.float32), np.array([0, 0, 1, 0], np.int32)
    # Box 0 overlaps box 1 (IoU 9/11) and is of its class; box 2 is of another; nothing is left for the last place.
    np.testing.assert_array_equal(nms.greedy_nms(boxes, scores, labels, 0.6, 4), [1, 2, 3, -1])


def test_different_boxes_end_with_an_error(monkeypatch, measured):
    monkeypatch.setattr(nms, "greedy_nms", lambda boxes, *_: np.full(5, -1, np.int32))
    with pytest.raises(SystemExit, match="different boxes"):
        measured(nms, "--candidates", "50", "--detections=5")
