"""The comparison of accuracy: settings, the job for mmdetection, curves and the table; nothing is trained."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import accuracy
from benchmarks.harness import accuracy_settings
from benchmarks.harness.training_runs import seed_difference, summarize_seeds
from benchmarks.peers.accuracy_check import compare_first_batch, worst_difference
from benchmarks.peers.accuracy_job import PlannedRow, read_job
from tood_jax.config import SplitConfig, from_dict
from tood_jax.config.validation import check
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.training.optimizer import scaled_learning_rate

SETTINGS = {setting.name: setting for setting in accuracy_settings.SETTINGS}


@pytest.fixture
def shapes(tmp_path):
    write_shapes(tmp_path / "shapes", ShapesConfig(train_images=10, val_images=4, height=(64, 80), width=(72, 90)))
    return tmp_path / "shapes"


def config_of(shapes, folder, images=0, **options):
    splits = {name: accuracy.make_split(shapes, name, images, folder) for name in ("train", "val")}
    args = accuracy.Args(epochs=4, short_side=48, **options)
    return accuracy.run_config(SETTINGS["tood_small"], 3, splits, args)


def result(side, seed, ap):
    return {"side": side, "seed": seed, "metrics": {"AP": ap, "AP50": 2 * ap, "AP75": 50.0}}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_valid_and_leave_out_what_mmdetection_does_not_have(name):
    splits = {split: SplitConfig(images=split, annotations=f"{split}.json") for split in ("train", "val")}
    config = accuracy.run_config(SETTINGS[name], 5, splits, accuracy.Args())
    check(config)
    assert config.train.seed == 5
    assert config.optimizer.ema_decay is None
    assert config.train.precision == "float32"
    assert config.assigner.kind == "atss" or config.assigner.rescue_iou == 0
    assert config.assigner.warmup_epochs == int(config.assigner.warmup_epochs)  # mmdetection counts whole epochs
    assert config.data.train_short_side == 2 * (config.data.eval_short_side,)
    assert config.data.filter_empty
    assert config.data.filter_tiny_boxes


def test_a_shorter_run_has_shorter_warm_ups():
    config = accuracy_settings.tood_r50()
    short = accuracy_settings.shortened(config, 4)
    assert (short.train.epochs, short.assigner.warmup_epochs, short.optimizer.step_epochs) == (4, 1, (3,))
    assert short.optimizer.warmup_steps == config.optimizer.warmup_steps // 2


def test_only_the_first_images_are_kept():
    tree = {
        "images": [{"id": 7}, {"id": 3}, {"id": 5}],
        "annotations": [{"image_id": 5}, {"image_id": 3}],
        "categories": [1],
    }
    kept = accuracy.first_images(tree, 2)
    assert kept == {"images": [{"id": 7}, {"id": 3}], "annotations": [{"image_id": 3}], "categories": [1]}


def test_the_job_has_every_batch_of_the_run(shapes, tmp_path):
    config = config_of(shapes, tmp_path)
    train_set = filter_for_training(load_dataset(config.data.train), config.data)
    config = replace(config, data=replace(config.data, buckets=accuracy.all_canvases([train_set], config)))
    assert all(side % 32 == 0 for canvas in config.data.buckets for side in canvas)
    job = accuracy.make_job(config, train_set, Path("/initial.safetensors"))
    assert job.epoch_steps == 2
    assert len(job.batches) == 2 * config.train.epochs
    ids = {image.id for image in train_set.images}
    for batch in job.batches:
        assert len(batch) == config.train.batch_size
        for row in batch:
            assert row.image_id in ids
            assert min(row.height, row.width) <= 48
    assert {row.flip for batch in job.batches for row in batch} == {False, True}
    file = tmp_path / "job.json"
    file.write_text(job.to_json(), encoding="utf-8")
    read = read_job(file)
    assert isinstance(read.batches[0][0], PlannedRow)
    assert read.to_json() == job.to_json()
    assert from_dict(read.config) == config


def test_a_folder_with_other_options_is_refused(shapes, tmp_path):
    folder = tmp_path / "runs" / "tood_small_seed0"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}", encoding="utf-8")
    (tmp_path / "data").mkdir()
    shapes.rename(tmp_path / "data" / "bccd")
    args = accuracy.Args(shared=str(tmp_path), runs=str(tmp_path / "runs"), short_side=48)
    with pytest.raises(SystemExit, match="has a run with other options"):
        accuracy.prepare(SETTINGS["tood_small"], 0, args)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    folder = tmp_path / accuracy_settings.OURS
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(accuracy_settings.OURS, 0, 10.0)), encoding="utf-8")
    monkeypatch.setattr(accuracy, "SIDES", {})
    run = accuracy.Run(SETTINGS["tood_small"], 0, accuracy_settings.small_tood(), tmp_path)
    assert accuracy.train_side(run, accuracy_settings.OURS, accuracy.Args())["metrics"]["AP"] == 10


def test_a_window_has_the_means_of_its_steps_and_the_last_row_of_a_repeated_step():
    rows = [{"step": step, "loss": float(step), "loss_bbox": 1.0} for step in (1, 2, 3)]
    rows += [{"step": 3, "loss": 5.0, "loss_bbox": 3.0}, {"step": 4, "loss": 7.0, "loss_bbox": 1.0}]
    assert accuracy.windows(rows, 2) == [
        {"step": 2, "loss": 1.5, "loss_box": 1.0},
        {"step": 4, "loss": 6.0, "loss_box": 2.0},
    ]


def test_standard_errors():
    summary = summarize_seeds([10.0, 12.0, 14.0])
    assert summary.mean == 12
    assert summary.deviation == pytest.approx(2)
    assert summary.error == pytest.approx(2 / 3**0.5)
    difference = seed_difference(summary, summarize_seeds([11.0, 11.0, 11.0]))
    assert difference.value == pytest.approx(1)
    assert difference.error == pytest.approx(summary.error)
    assert difference.in_errors == pytest.approx(3**0.5 / 2)
    assert seed_difference(summarize_seeds([3.0]), summary).in_errors is None
    assert seed_difference(summarize_seeds([3.0, 3.0]), summarize_seeds([2.0, 2.0])).in_errors is None


def test_the_table_has_a_row_for_each_metric():
    results = [result(accuracy_settings.OURS, seed, 10.0 + 2 * seed) for seed in (0, 1)]
    results += [result(accuracy_settings.MMDETECTION, seed, 10.0 + seed) for seed in (0, 1)]
    rows = accuracy.table_rows(results, [accuracy_settings.OURS, accuracy_settings.MMDETECTION])
    assert [row[0] for row in rows] == ["AP", "AP50", "AP75"]
    assert rows[0][1:] == ["11.00 ± 1.41 (error 1.00)", "10.50 ± 0.71 (error 0.50)", "+0.50 (+0.4 errors)", "–"]
    results[0]["tested_by_mmdetection"] = {"AP": 9.0, "AP50": 1.0, "AP75": 1.0}
    rows = accuracy.table_rows(results, [accuracy_settings.OURS, accuracy_settings.MMDETECTION])
    assert rows[0][-1] == "9.00 (one seed)"
    assert accuracy.table_rows(results[:1], [accuracy_settings.OURS])[0] == ["AP", "10.00 (one seed)"]


def test_a_comparison_that_exists_is_read_and_a_large_difference_ends_the_run(tmp_path, capsys):
    run = accuracy.Run(SETTINGS["tood_small"], 0, accuracy_settings.small_tood(), tmp_path)
    file = tmp_path / "check.json"
    file.write_text(json.dumps([["trained loss cls", 1.0, 1.0001, 1e-4]]), encoding="utf-8")
    assert accuracy.check(run, accuracy.Args())[0].mmdetection == 1.0001
    assert "| trained loss cls | 1        | 1.0001      | 1.0e-04    |" in capsys.readouterr().out
    file.write_text(json.dumps([["trained loss cls", 1.0, 1.1, 0.09]]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"the first batch differs by 9.0e-02, more than 0\.001"):
        accuracy.check(run, accuracy.Args())


def first_batch(**changes):
    arrays = {"images": np.ones((2, 3, 4, 4)), "boxes_0": np.ones((1, 4)), "labels_0": np.zeros(1)}
    return arrays | {"warm_up_loss_cls": np.ones(5), "trained_loss_cls": np.ones(5), **changes}


def test_the_first_batch_is_compared():
    values = compare_first_batch(
        first_batch(), first_batch(trained_loss_cls=np.full(5, 1.01), images=np.ones((2, 3, 4, 4)) + 0.5)
    )
    assert [value.what for value in values] == [
        "images, mean", "boxes, number", "labels, number", "warm up loss cls", "trained loss cls",
    ]  # fmt: skip
    assert values[0].difference == pytest.approx(0.5)
    assert worst_difference(values) == pytest.approx(1 - 1 / 1.01)
    assert worst_difference(compare_first_batch(first_batch(), first_batch(boxes_0=np.ones((2, 4))))) == np.inf
    assert worst_difference(compare_first_batch(first_batch(), first_batch(images=np.ones((2, 3, 4, 8))))) == np.inf
    assert len(compare_first_batch(first_batch(), first_batch(), ("trained",))) == 4


@pytest.mark.torch
@pytest.mark.parametrize("name", SETTINGS)
def test_mmdetection_gets_the_same_detector_and_schedule(name):
    settings = importlib.import_module("benchmarks.peers.mmdetection_settings")
    config = SETTINGS[name].config()
    model = settings.detector_settings(config, 5)
    assert model["backbone"]["depth"] == config.backbone.depth
    assert model["backbone"]["norm_cfg"]["type"] == ("GN" if config.backbone.norm == "group" else "BN")
    assert model["backbone"]["norm_eval"] == (config.backbone.norm == "frozen_batch")
    assert model["neck"]["in_channels"][-1] == (2048 if config.backbone.depth == 50 else 128)
    assert ("norm_cfg" in model["neck"]) == (config.neck.norm == "group")
    assert model["bbox_head"]["type"] == ("ATSSHead" if name == "atss_small" else "TOODHead")
    assert model["bbox_head"]["num_classes"] == 5
    assert model["train_cfg"].get("initial_epoch", 0) == (
        0 if config.assigner.kind == "atss" else config.assigner.warmup_epochs
    )
    optimizer = settings.optimizer_settings(config)["optimizer"]
    assert optimizer["lr"] == scaled_learning_rate(config.optimizer, config.train.batch_size)
    warm_up, decay = settings.schedule_settings(config, 50)
    assert warm_up["end"] == config.optimizer.warmup_steps + 1
    assert decay["T_max" if config.optimizer.schedule == "cosine" else "milestones"] in (2000, [300])


def test_names_that_do_not_exist():
    with pytest.raises(SystemExit, match="--settings: fcos must be among tood_small, atss_small"):
        accuracy.main(["--settings", "fcos"])
    with pytest.raises(SystemExit, match="--sides: caffe must be among tood_jax, mmdetection"):
        accuracy.main(["--sides", "caffe"])
