"""The trace of a collapse: a row every so many steps, with numbers that fit each other."""

import pytest

from benchmarks.cases import training_collapse
from tests.tiny import tiny_config
from tood_jax.config import save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes


@pytest.mark.slow
def test_rows_of_both_phases(tmp_path, measured):
    write_shapes(tmp_path / "set", ShapesConfig(train_images=24, val_images=1, height=(64, 64), width=(64, 64)))
    save_config(tiny_config(tmp_path / "set", tmp_path / "run", batch_size=8), tmp_path / "config.json")
    report = measured(training_collapse, f"--config={tmp_path / 'config.json'}", "--steps=5", "--every=2")
    rows = report["results"]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert [row["task_aligned"] for row in rows] == [False, False, True]
    for row in rows:
        assert row["peak"] >= row["grad_norm"] > 0
        assert 0 < row["best_iou_inside"] <= row["best_iou"] <= 1
        assert row["raw_min"] < row["raw_max"]
        assert sum(row["positives"]) > 0
