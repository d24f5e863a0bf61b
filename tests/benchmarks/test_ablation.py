"""The ablation: every row is a config that train.py takes; one row is trained, and not a second time."""

import dataclasses
import json

import pytest

from benchmarks.cases import ablation
from tests.benchmarks.conftest import TINY
from tood_jax.cli.command_line import parse
from tood_jax.cli.train import Args as TrainArgs

ROWS = [(grid, row) for grid, rows in ablation.GRIDS.items() for row in rows]
ONE_EPOCH = f"--train.epochs=1 --optimizer.warmup_steps=0 {TINY}"


@pytest.mark.parametrize(("grid", "row"), ROWS, ids=[f"{grid}: {row.label}" for grid, row in ROWS])
def test_every_row_is_a_config_that_works(grid, row):
    argv = ["--config", f"configs/ablation/{row.config}.py", *row.overrides]
    _, config = parse(TrainArgs, argv, prog="train.py")
    assert config.name == row.config
    label = row.label.partition(",")[0]
    assert grid != "assigners" or config.assigner.kind == label


def test_labels_are_unique_in_a_grid():
    for rows in ablation.GRIDS.values():
        assert len({row.label for row in rows}) == len(rows)


def test_a_grid_that_is_not_there():
    with pytest.raises(SystemExit, match="--grid=heads must be one of head_and_assignment, assigners"):
        ablation.main(["--grid=heads"])


@pytest.mark.slow
def test_one_row_is_trained_once(tmp_path, monkeypatch, capfd):
    shapes = dataclasses.replace(
        ablation.DENSE_SHAPES, train_images=8, val_images=4, height=(64, 64), width=(64, 64), max_objects=3
    )
    monkeypatch.setattr(ablation, "DENSE_SHAPES", shapes)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    out = tmp_path / "report.json"
    argv = [
        "--grid=head_and_assignment", "--rows", "parallel head, ATSS", "--seeds", "0", f"--runs={tmp_path / 'runs'}",
        f"--data={tmp_path / 'shapes'}", f"--overrides={ONE_EPOCH}", f"--out={out}",
    ]  # fmt: skip
    report = ablation.main(argv)
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    (row,) = report["results"]
    assert (row["label"], row["paper"]) == ("parallel head, ATSS", 39.2)
    assert set(row["seeds"]["0"]) == set(ablation.METRICS)
    assert row["AP"] == (row["seeds"]["0"]["AP"], 0.0)
    assert "Generated " in capfd.readouterr().out
    monkeypatch.setattr(ablation, "run_train", lambda *_: pytest.fail("trained again"))
    assert ablation.main(argv)["results"] == report["results"]
    assert "Generated " not in capfd.readouterr().out
