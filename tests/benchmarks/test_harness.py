"""Timing, tables, random inputs and options of the harness."""

import pytest

from benchmarks.cases import nms
from benchmarks.harness.inputs import random_batch
from benchmarks.harness.options import read_options
from benchmarks.harness.tables import print_table
from benchmarks.harness.timing import time_interleaved, timing_summary


def test_rounds_are_interleaved_and_the_first_is_reported_separately(monkeypatch):
    # A variant that takes longer than this runs only when it is timed.
    monkeypatch.setattr("benchmarks.harness.timing.SHORT_SECONDS", 0.0)
    calls: list[str] = []
    found = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert len(found["a"]["all_seconds"]) == 2
    assert found["a"]["first_seconds"] > 0


def test_short_work_is_warm_when_it_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.timing.PAUSE_SECONDS", 0.01)
    calls: list[str] = []
    found = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert len(found["a"]["all_seconds"]) == 2
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["a", "b"] * 3
    assert len(calls) > 100


def test_timing_summary():
    found = timing_summary([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found["min_seconds"], found["median_seconds"], found["max_seconds"]) == (1, 3, 5)
    assert found["quartile_seconds"] == [2, 4]
    assert found["all_seconds"] == [3, 1, 2, 5, 4]


def test_a_table(capsys):
    print_table("Title", ["name", "ms"], [["a", 1.2345], ["bcdef", None], ["c", 1234.5]])
    assert capsys.readouterr().out == (
        "\nTitle\n\n| name  | ms   |\n|-------|------|\n| a     | 1.23 |\n| bcdef | –    |\n| c     | 1234 |\n"
    )


def test_random_batch_holds_its_objects():
    batch = random_batch(2, 64, 96, objects=3, max_objects=5, classes=4, seed=0)
    assert batch.images.shape == (2, 64, 96, 3)
    assert batch.gt_mask.sum(axis=1).tolist() == [3, 3]
    boxes = batch.gt_boxes[batch.gt_mask]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= [96, 64, 96, 64]).all()
    assert (batch.gt_boxes[~batch.gt_mask] == 0).all()


def test_repeats_must_be_positive():
    with pytest.raises(SystemExit, match="repeats"):
        read_options(nms.Args, ["--repeats=0"], "nms", "")
