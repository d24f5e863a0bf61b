"""Cases that run a whole model: train_step, padding and inference."""

from dataclasses import replace

import pytest

from benchmarks.cases import inference, padding, train_step
from tests.benchmarks.timings import CANVAS, PROGRAM_FIELDS, check_timing
from tests.tiny import tiny_config
from tood_jax.config import save_config


@pytest.fixture
def config_file(tmp_path):
    """The tiny run with less to compile: a frozen backbone, a short head, no moving average."""
    config = tiny_config(tmp_path, tmp_path)
    config = replace(
        config,
        backbone=replace(config.backbone, norm="frozen_batch", frozen_stages=4),
        neck=replace(config.neck, norm="none"),
        head=replace(config.head, num_convs=1),
        optimizer=replace(config.optimizer, schedule="cosine", ema_decay=None),
    )
    file = tmp_path / "tiny.json"
    save_config(config, file)
    return file


@pytest.mark.slow
def test_padding(measured, config_file, capsys):
    report = measured(padding, "--config", str(config_file), "--batch=2", "--objects=3", *CANVAS)
    assert [row["padding"] for row in report["results"]] == ["canvas", "masked"]
    for row in report["results"]:
        check_timing(row)
        assert row["flops"] > 0
    medians = [row["median_seconds"] for row in report["results"]]
    assert report["masked_over_canvas"] == pytest.approx(medians[1] / medians[0])
    assert "masked / canvas: " in capsys.readouterr().out


@pytest.mark.slow
def test_train_step(measured, config_file, capsys):
    report = measured(train_step, "--config", str(config_file), "--batch=2", "--objects=3", *CANVAS)
    assert [row["phase"] for row in report["results"]] == ["warmup_atss", "task_aligned"]
    assert [row["task_aligned"] for row in report["results"]] == [0, 1]
    for row in report["results"]:
        check_timing(row)
        assert row["finite"] == 1
        assert row["first_seconds"] > 0
        assert row["images_per_second"] == pytest.approx(2 / row["median_seconds"])
    assert set(report["program"]) == PROGRAM_FIELDS
    assert report["program"]["flops"] > 0
    assert report["config"]["train"]["batch_size"] == 2
    assert "| task_aligned |" in capsys.readouterr().out


@pytest.mark.slow
def test_inference(measured, config_file):
    report = measured(inference, "--config", str(config_file), "--batch=2", *CANVAS)
    assert [row["images"] for row in report["results"]] == [2, 1, 2]
    for row in report["results"]:
        check_timing(row)
        assert set(row["program"]) == PROGRAM_FIELDS
