"""The description of a training run that mmdetection repeats: it goes as JSON to `mmdetection_accuracy.py`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tood_jax.data.dataset import Id
from tood_jax.data.sampler import BatchSpec


class PlannedRow(NamedTuple):
    """One image of a batch: what is done to it before it is padded."""

    image_id: Id  # COCO's
    height: int  # of the resized image, pixels
    width: int
    flip: bool  # left-right
    vertical_flip: bool


@dataclass(frozen=True)
class TrainingJob:
    """One run. Paths are absolute."""

    config: dict[str, Any]  # of tood_jax, as `to_dict` returns it
    classes: tuple[str, ...]  # names by label
    weights: str  # initial weights, .safetensors with mmdetection's names
    epoch_steps: int
    batches: tuple[tuple[PlannedRow, ...], ...]  # of all steps, over all epochs

    def to_json(self) -> str:
        """Return the job as JSON, always the same text for the same job."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def read_job(path: Path) -> TrainingJob:
    """Return the job of a file with `TrainingJob.to_json`."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    batches = tuple(tuple(PlannedRow(*row) for row in batch) for batch in fields["batches"])
    return TrainingJob(**{**fields, "classes": tuple(fields["classes"]), "batches": batches})


def planned_rows(batch: BatchSpec, image_ids: tuple[Id, ...]) -> tuple[PlannedRow, ...]:
    """Return the rows of a batch of the training sampler.

    Args:
        image_ids: COCO's id of each image of the data set.
    """
    return tuple(PlannedRow(image_ids[row.index], *row.size, row.flip, row.vertical_flip) for row in batch.rows)
