"""What training sees, of a real run."""

import re

import cv2
import pytest

from tood_jax.tools.analyze import targets

pytestmark = pytest.mark.slow


def test_training_draws_its_targets_at_the_start_of_each_phase(trained):
    drawn = sorted(file.name for file in (trained.folder / "pictures").glob("*targets.png"))
    assert drawn == ["0000000_targets.png", "0000001_targets.png"]
    assert "can't be drawn" not in (trained.folder / "train.log").read_text()


def test_the_table_counts_what_the_log_counted(trained, tmp_path, capsys):
    """The weights of a step and the batch of the next give the positives of that update."""
    step = 8
    targets.main(["--checkpoint", str(trained.folder), f"--step={step}", "--out", str(tmp_path / "t.png")])
    text = capsys.readouterr().out
    row, batch = trained.steps[step]
    objects, positives, without = map(int, re.search(r"(\d+) objects, (\d+) positives, (\d+) obj", text).groups())
    assert (objects, positives) == (row["objects"], row["positives"])
    assert objects == batch.gt_mask.sum()
    assert text.count("no positive") == without
    assert cv2.imread(str(tmp_path / "t.png")) is not None
