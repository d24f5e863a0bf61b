"""Drawings in the log of a run: detections beside annotations, and what training sees."""

from dataclasses import dataclass

import jax
import numpy as np

from tood_jax.config import Config
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.image_io import decode_image
from tood_jax.distributed.sharding import make_mesh
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.models.build import build_model
from tood_jax.models.detector import canvas_pyramid
from tood_jax.run_log.log import RunLog
from tood_jax.training.plan import make_plan
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

    dataset: Dataset
    config: Config
    log: RunLog

    def __call__(self, state: TrainState, step: int) -> None:
        """Log the drawing of the update after `step`; an error in it never ends the run."""
        try:
            self.log.picture(step, "targets", self._draw(state, step))
        except Exception as error:
            reason = printable(error) or type(error).__name__
            self.log.info(f"warning: the targets of step {step} can't be drawn ({reason})")

    def _draw(self, state: TrainState, step: int) -> np.ndarray:
        config, mesh = self.config, make_mesh(jax.local_devices()[:1])
        weights = [
            jax.tree.map(lambda x: np.asarray(x.addressable_data(0) if x.is_fully_replicated else x), tree)
            for tree in (state.params, state.batch_stats)
        ]
        rows = batch_of_step(self.dataset, config, step)
        batch = jax.tree.map(lambda x: x[:DRAWN_IMAGES], rows)
        model = build_model(config, len(self.dataset.classes))
        epoch_steps = make_plan(config, len(self.dataset.images)).epoch_steps
        in_tal_phase = np.asarray(step >= warmup_steps(config, epoch_steps))
        assignment = jax.device_get(compile_assignment(model, config, mesh)(*weights, batch, in_tal_phase))
        pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
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
