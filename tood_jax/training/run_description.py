"""Description of a run in its checkpoints: config, classes and fingerprint of the data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tood_jax.config import Config, to_dict
from tood_jax.data.dataset import Dataset
from tood_jax.training.fingerprint import check_same_classes, check_same_data, describe_run
from tood_jax.training.plan import Plan


class RunDescription:
    """What a run learns from and by which config; `eval.py` and `predict.py` need nothing else of a checkpoint.

    Attributes:
        about: the part of a checkpoint's `about` that stays the same during a start.
        note: consequences of a restored checkpoint's other data, where train.accept_other_data allows them; or "".
    """

    def __init__(self, config: Config, plan: Plan, splits: Mapping[str, Dataset], checkpoints: Path):
        """Describe a run.

        Args:
            splits: by name, "train" and perhaps "val".
            checkpoints: folder that messages name.
        """
        self._classes = splits["train"].classes
        self.about: dict[str, Any] = {
            "config": to_dict(config),
            "classes": [{"id": info.id, "name": info.name} for info in self._classes],
            "fingerprint": describe_run(config, plan, splits),
        }
        self.note = ""
        self._is_accepted = config.train.accept_other_data
        self._checkpoints = checkpoints

    def check(self, about: Mapping[str, Any]) -> None:
        """Compare a checkpoint's `about` with this run. Raises CheckpointError."""
        where = str(self._checkpoints / str(about["step"]))
        check_same_classes(about["classes"], self._classes, where)
        self.note = check_same_data(
            about.get("fingerprint") or {},
            self.about["fingerprint"],
            step=about["step"],
            accepted=self._is_accepted,
            where=where,
        )
