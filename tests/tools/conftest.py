"""A run of nine steps by train.py, in both phases, with drawings of its targets."""

import dataclasses

import pytest

from tests.tiny import tiny_config
from tood_jax.cli import train
from tood_jax.config import save_config
from tood_jax.config.files import load_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.training import stepper


@dataclasses.dataclass
class Trained:
    """A run, and the batches and rows of numbers that its loop saw."""

    data: object
    folder: object
    config: object
    steps: list


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("analyze")
    write_shapes(root / "set", ShapesConfig(train_images=12, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(
        root / "set", root / "run", batch_size=8, eval_batch_size=8, epochs=9, eval_every_epochs=0, draw_targets=True
    )
    optimizer = dataclasses.replace(config.optimizer, step_epochs=())
    data = dataclasses.replace(config.data, train_short_side=(40, 64), vertical_flip_probability=0.5)
    save_config(dataclasses.replace(config, optimizer=optimizer, data=data), root / "tiny.json")
    steps = []
    rows = stepper.Stepper.rows

    def spy(self, count):
        for row, batch in rows(self, count):
            steps.append((row, batch))
            yield row, batch

    patch = pytest.MonkeyPatch()
    patch.setattr(stepper.Stepper, "rows", spy)
    train.main(["--config", str(root / "tiny.json"), "--detect.score_threshold=0.001"])
    patch.undo()
    return Trained(root / "set", root / "run", load_config(str(root / "run" / "config.json")), steps)
