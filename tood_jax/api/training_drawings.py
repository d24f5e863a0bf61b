"""Drawings in the log of a run: detections beside annotations, and what training sees."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from tood_jax.config import Config
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.image_io import decode_image
from tood_jax.distributed.sharding import make_mesh
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.models.detector import Detector, canvas_pyramid
from tood_jax.run_log.log import RunLog
from tood_jax.training.seen_batch import batch_of_step, compile_assignment
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import warmup_steps
from tood_jax.untrusted.printable import printable
from tood_jax.visualization.draw import (
    contact_sheet,
    draw_detections,
    draw_ground_truth,
    resize_for_drawing,
    side_by_side,
)
from tood_jax.visualization.targets import draw_targets

DRAWN_IMAGES = 4  # of a batch or a set


@dataclass(frozen=True)
class TargetDrawings:
    """Logs a drawing of what training sees in a step: a few images of its batch and the positives of their objects.

    The network runs on one device and on these images alone, so norms have their statistics.
    """

    model: Detector
    dataset: Dataset
    config: Config
    epoch_steps: int
    log: RunLog

    @cached_property
    def _assign(self) -> Any:
        """The program, which both phases use."""
        return compile_assignment(self.model, self.config, make_mesh(jax.local_devices()[:1]))

    def __call__(self, state: TrainState, step: int) -> None:
        """Log the drawing of the update after `step`; an error in it never ends the run."""
        try:
            self.log.picture(step, "targets", self._draw(state, step))
        except Exception as error:
            reason = printable(error) or type(error).__name__
            self.log.info(f"warning: the targets of step {step} can't be drawn ({reason})")

    def _draw(self, state: TrainState, step: int) -> np.ndarray:
        weights = [
            jax.tree.map(lambda x: np.asarray(x.addressable_data(0) if x.is_fully_replicated else x), tree)
            for tree in (state.params, state.batch_stats)
        ]
        rows = batch_of_step(self.dataset, self.config, step)
        batch = jax.tree.map(lambda x: x[:DRAWN_IMAGES], rows)
        in_tal_phase = np.asarray(step >= warmup_steps(self.config, self.epoch_steps))
        assignment = jax.device_get(self._assign(*weights, batch, in_tal_phase))
        pyramid = canvas_pyramid(batch, self.config.head.anchors_per_location)
        return draw_targets(batch, assignment, pyramid, class_names(self.dataset.classes))


def draw_comparison(found: list[ImageDetections], dataset: Dataset, bit_depth: int) -> np.ndarray:
    """Draw the detections (left) beside the annotations (right) of a few images."""
    names = class_names(dataset.classes)
    rows = []
    for detections in found:
        record = dataset.images[detections.image_index]
        original = decode_image(record.path, bit_depth=bit_depth)
        image, boxes = resize_for_drawing(original, detections.boxes)
        _, gt_boxes = resize_for_drawing(original, record.boxes)
        rows.append(
            side_by_side(
                draw_detections(image, boxes, detections.scores, detections.labels, names),
                draw_ground_truth(image, gt_boxes, record.labels, names),
            )
        )
    return contact_sheet(rows, columns=2)
