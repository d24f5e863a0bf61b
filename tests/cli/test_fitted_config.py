"""tood train --data FOLDER without a config: decisions, and a config that can be run again."""

import json
import re

import pytest

from tests.data.formats.layouts import WRITERS
from tood_jax.cli import train
from tood_jax.cli.fitted_config import default_config, run_name
from tood_jax.config import load_config_json, to_dict
from tood_jax.data.synthetic import ShapesConfig, write_shapes

TINY = (
    *(
        "--backbone.width=8",
        "--backbone.norm=group",
        "--neck.channels=16",
        "--head.channels=16",
        "--head.norm_groups=4",
    ),
    *("--head.num_convs=1", "--train.epochs=1", "--optimizer.warmup_steps=1", "--train.batch_size=8"),
    *("--train.eval_batch_size=8", "--assigner.warmup_epochs=0.5", "--data.train_short_side=48,64"),
    *("--data.eval_short_side=56", "--data.max_long_side=64", "--data.buckets=64x64", "--report=False"),
)


def test_a_folder_gives_the_recipe_and_its_decisions(tmp_path, capsys):
    WRITERS["ultralytics"](tmp_path / "my set")
    config = default_config(["--data", str(tmp_path / "my set")], "tood train")
    assert config.name == "my_set"
    assert config.backbone.width == 16
    assert (config.data.train.folder_split, config.data.val.folder_split) == ("train", "val")
    output = capsys.readouterr().out
    assert "  data.max_objects=10: an image has at most 2 objects\n" in output
    assert "The folder of the run keeps it as config.json, for --config." in output


@pytest.mark.parametrize(
    "words", [["--config=small_set", "--data=x"], ["--help", "--data=x"], ["--train.epochs=3"], []]
)
def test_any_other_command_line_has_no_default(words, capsys):
    assert default_config(words, "tood train") == ""
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--data", str(tmp_path / "nowhere")], "tood train")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"tood train: The folder .*nowhere can't be listed \(.*\n", error)


def test_names_of_runs():
    assert run_name("/data/Blood cells (v2)/") == "Blood_cells_v2"
    assert run_name("/data/日本") == "own_set"


@pytest.mark.slow
def test_the_stored_config_runs_again(tmp_path, monkeypatch, capsys):
    write_shapes(tmp_path / "set", ShapesConfig(train_images=16, val_images=8, height=(64, 64), width=(64, 64), seed=3))
    monkeypatch.chdir(tmp_path)
    train.main(["--data", "set", *TINY])
    stored = load_config_json(tmp_path / "runs/set/config.json")
    (tmp_path / "runs/set").rename(tmp_path / "runs/first")
    train.main(["--config", "runs/first/config.json", "--report=False"])
    assert to_dict(load_config_json(tmp_path / "runs/set/config.json")) == to_dict(stored)
    rows = [
        [json.loads(line) for line in (tmp_path / f"runs/{name}/metrics.jsonl").read_text().splitlines()][-1]
        for name in ("first", "set")
    ]
    assert rows[0]["AP"] == rows[1]["AP"]
