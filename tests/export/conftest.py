"""A checkpoint of the tiny config with random weights, and its exported folder."""

import contextlib
import dataclasses

import jax
import jaxtyping
import numpy as np
import pytest

from tests.models.random_variables import random_variables
from tests.tiny import tiny_config
from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.cli import export
from tood_jax.config import to_dict
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.models.build import build_model


@contextlib.contextmanager
def without_jaxtyping():
    """jaxtyping can't broadcast symbolic sizes (`*#n`)."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def unchecked_shapes():
    with without_jaxtyping():
        yield


@pytest.fixture(scope="session")
def random_run(tmp_path_factory):
    """Folder of a run whose weights were not trained; its detections are many and of low scores."""
    root = tmp_path_factory.mktemp("export")
    write_shapes(root / "set", ShapesConfig(train_images=1, val_images=3, height=(64, 96), width=(64, 96), seed=3))
    config = tiny_config(root / "set", root / "run", eval_batch_size=8)
    config = dataclasses.replace(config, detect=dataclasses.replace(config.detect, score_threshold=0.001))
    classes = load_dataset(config.data.val).classes
    variables = jax.tree.map(np.asarray, random_variables(build_model(config, len(classes))))
    about = {"config": to_dict(config), "classes": [one._asdict() for one in classes]}
    with CheckpointStore(root / "run" / "checkpoints", 1) as store:
        store.save(0, variables, about)
    return root / "run"


@pytest.fixture(scope="session")
def exported(random_run):
    """The folder that `tood export` wrote."""
    out = random_run.parent / "exported"
    options = ["--compared_images=1", "--formats=stablehlo,onnx", "--compare_ap"]
    with without_jaxtyping():
        export.main(["--checkpoint", str(random_run), "--out", str(out), *options])
    return out
