"""MLflow: numbers and pictures of a run, in the store of MLFLOW_TRACKING_URI or, without it, MLflow's local one.

MLFLOW_EXPERIMENT_NAME names the experiment.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tood_jax.run_log.logger import LoggerStart, Picture, clean_tag, flat_config

EXPERIMENT = "tood_jax"
_AT_ONCE = 100  # parameters that a request may have
_MAX_VALUE = 6000  # characters of a parameter


def open_logger(start: LoggerStart) -> "MlflowLogger":
    """Return a logger for the MLflow run of this run's folder."""
    return MlflowLogger(start)


class MlflowLogger:
    """A run of MLflow."""

    def __init__(self, start: LoggerStart):
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric: Any = Metric
        self._client: Any = MlflowClient()
        if start.run_id is None:
            self._id = self._create(start.name)
            start.keep_run_id(self._id)
            self._add_parameters(start.config)
        else:
            self._id = self._client.get_run(start.run_id).info.run_id
            self._client.update_run(self._id, status="RUNNING")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag."""
        now = int(1000 * time.time())
        metrics = [self._metric(clean_tag(tag), value, now, step) for tag, value in values.items()]
        for begin in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[begin : begin + _AT_ONCE])

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step to the artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{step:07d}_{clean_tag(tag).replace('/', '_')}{picture.suffix}"
            file.write_bytes(picture.encoded)
            self._client.log_artifact(self._id, str(file), "pictures")

    def close(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._id)

    def _create(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        return self._client.create_run(experiment_id, run_name=name).info.run_id

    def _add_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        fields = [Param(name, str(value)[:_MAX_VALUE]) for name, value in flat_config(config).items()]
        for begin in range(0, len(fields), _AT_ONCE):
            self._client.log_batch(self._id, params=fields[begin : begin + _AT_ONCE])
