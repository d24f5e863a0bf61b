"""An update computed again: its batch is that of training, and with its own weights also its loss and gradient."""

import re

import numpy as np
import pytest

from tood_jax.api import load_trained_model
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.tools import replay
from tood_jax.training.seen_batch import batch_of_step

pytestmark = pytest.mark.slow


def train_set(config):
    return filter_for_training(load_dataset(config.data.train, for_evaluation=False), config.data)


def test_the_batch_of_every_update_is_what_the_loop_saw(trained):
    dataset = train_set(trained.config)
    assert len(trained.steps) == 9
    for step, (_, seen) in enumerate(trained.steps):
        rebuilt = batch_of_step(dataset, trained.config, step)
        for name, one, other in zip(seen._fields, seen, rebuilt, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_losses_and_gradients_are_those_of_training(trained):
    """Checkpoint 8 has the weights of update 9; losses of objects and background add up."""
    checkpoint = replay.nearest_checkpoint(trained.folder, 8)
    assert checkpoint.step == 8
    model = load_trained_model(checkpoint, trained.config, averaged=False)
    found = replay.replay(model, trained.config, train_set(trained.config), 9)
    row, _ = trained.steps[8]
    norm = sum(value**2 for value in found.layer_norms.values()) ** 0.5
    np.testing.assert_allclose([found.loss, norm], [row["loss"], row["grad_norm"]], rtol=1e-4)
    objects, background = replay.object_losses(found)
    assert sum(sum(loss.values()) for loss in objects + background) == pytest.approx(row["loss"], rel=1e-4)
    assert sum(sum(one.positives) for one in found.targets) == row["positives"]


def test_the_output_says_whose_weights_are_used(trained, capsys, tmp_path):
    replay.main([str(trained.folder), "--step", "9", "--out", str(tmp_path / "batch.png")])
    text = capsys.readouterr().out
    assert text.startswith("Update 9, with its own weights (checkpoint 8).")
    assert float(re.search(r"^loss ([\d.]+)", text, re.MULTILINE)[1]) == pytest.approx(
        trained.steps[8][0]["loss"], 1e-4
    )
    assert (tmp_path / "batch.png").exists()
    replay.main([str(trained.folder), "--step=4"])
    assert "with the weights of checkpoint 8, the nearest one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run first"),
        (["RUN"], "name the update: --step N"),
        (["RUN", "--step=0"], "--step=0 must be the number of an update"),
        (["RUN", "--step=10"], "--step=10 is beyond the last update of this run, 9."),
        (["nowhere", "--step=1"], "nowhere has no checkpoints"),
        (["RUN", "--step=1", "--out=x.gif"], "--out=x.gif must end with .png or .jpg."),
    ],
)
def test_errors_are_one_sentence(trained, capsys, words, message):
    with pytest.raises(SystemExit):
        replay.main([str(trained.folder) if word == "RUN" else word for word in words])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
