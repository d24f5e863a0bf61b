"""Evaluation of a data set with a fake detector."""

import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.distributed.sharding import make_mesh
from tood_jax.evaluation.evaluate import evaluate_set
from tood_jax.types import Detections


@pytest.mark.parametrize("dropped", [0, 3])
def test_dropped_detections_are_reported(tmp_path, dropped):
    write_shapes(tmp_path, ShapesConfig(train_images=1, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(tmp_path, tmp_path / "run")
    dataset = load_dataset(config.data.val)

    def detect(params, batch_stats, batch):
        count = len(batch.image_indices)
        first = np.asarray(batch.image_indices) == 0
        none = Detections(np.zeros((count, 2, 4)), np.zeros((count, 2)), np.full((count, 2), -1), dropped * first)
        return none, batch.image_indices

    evaluation = evaluate_set(detect, {}, {}, dataset, config.data, 4, make_mesh([jax.devices()[0]], 1))
    assert evaluation.metrics.AP == 0
    if dropped:
        assert evaluation.left_out.startswith("3 candidates of 1 images had a box or score that is NaN or infinite")
    else:
        assert evaluation.left_out == ""
