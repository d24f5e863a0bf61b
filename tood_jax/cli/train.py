"""train.py: from a config to a trained detector."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tood_jax.build import build_model
from tood_jax.cli.common import said_in_one_sentence, use_compilation_cache
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError, save_config, warnings
from tood_jax.data.coco import CocoSet, load_coco
from tood_jax.data.decode import decode_image
from tood_jax.evaluation.coco_ap import CocoMetrics, format_table
from tood_jax.evaluation.evaluate import evaluate_set
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step
from tood_jax.training.loop import Outcome, train
from tood_jax.training.records import RunLog
from tood_jax.training.sharding import make_mesh
from tood_jax.training.state import TrainState
from tood_jax.visualize.draw import contact_sheet, draw_detections, draw_ground_truth, enlarge, side_by_side

STOPPED = 130  # exit status of a run that was asked to stop, as shells have it for Ctrl-C
PICTURES = 4  # images drawn at every evaluation


@dataclass(frozen=True)
class Args:
    """train.py has no options besides the config's."""


def main(argv: list[str] | None = None) -> None:
    """The door `train.py`."""
    argv = sys.argv[1:] if argv is None else argv
    _, config = parse(Args, argv, prog="train.py", description="Train a detector, or go on where a run stopped.")
    use_compilation_cache()
    with said_in_one_sentence("train.py"):
        outcome = run(config)
    if not outcome.finished:
        raise SystemExit(STOPPED)


def run(config: Config, devices: list[jax.Device] | None = None) -> Outcome:
    """Train by a config on the given devices (all by default), evaluating on its val split."""
    folder = Path(config.workdir)
    with RunLog(folder, config.train.log_every_steps, speaks=jax.process_index() == 0) as log:
        for text in warnings(config):
            log.say(f"Note: {text}")
        train_set, val_set = _load(config, log)
        save_config(config, folder / "config.json")
        mesh = make_mesh(devices)
        model = build_model(config, len(train_set.classes))
        detect_step = compile_detect_step(model, config, mesh)
        names = [one.name for one in val_set.classes]

        def evaluate(state: TrainState, step: int) -> dict[str, Any]:
            evaluation = evaluate_set(detect_step, state.eval_params, state.batch_stats, val_set, config, mesh)
            metrics, found = evaluation.metrics, evaluation.found
            log.metrics(step, {**metrics.to_dict(), "images": len(found)}, kind="eval")
            log.say(
                f"Step {step}, {len(found)} images of {config.data.val.annotations}:\n{format_table(metrics, names)}"
            )
            if evaluation.left_out:
                log.say(f"Evaluation: {evaluation.left_out}")
            _warn_of_nothing_found(metrics, found, log)
            log.picture(step, "detections", _draw(found[:PICTURES], val_set, names))
            return metrics.to_dict()

        outcome = train(config, model=model, train_set=train_set, mesh=mesh, log=log, evaluate=evaluate)
        if outcome.finished:
            log.say(f"Done. Next: python eval.py --checkpoint {folder}")
        return outcome


def _load(config: Config, log: RunLog) -> tuple[CocoSet, CocoSet]:
    """Both splits, after checking that they speak of the same classes."""
    train_set, val_set = load_coco(config.data.train), load_coco(config.data.val)
    for split, dataset in (("train", train_set), ("val", val_set)):
        log.say(f"{split}: {dataset.report.summary()}")
    if train_set.classes != val_set.classes:
        raise ConfigError(
            f"The categories of {config.data.train.annotations} and {config.data.val.annotations} differ: "
            f"{[one.name for one in train_set.classes]} and {[one.name for one in val_set.classes]}. "
            "Both files must list the same categories with the same ids."
        )
    return train_set, val_set


def _warn_of_nothing_found(metrics: CocoMetrics, found: list[ImageDetections], log: RunLog) -> None:
    if found and not any(len(one.scores) for one in found):
        log.say("Note: not one detection exceeds detect.score_threshold yet.")
    elif metrics.AP == 0:
        log.say("Note: there are detections, but none fits an object yet.")


def _draw(found: list[ImageDetections], dataset: CocoSet, names: list[str]) -> np.ndarray:
    """Detections (left) beside the annotations (right) of a few images."""
    rows = []
    for one in found:
        record = dataset.images[one.image_index]
        original = decode_image(record.path)
        image, boxes = enlarge(original, one.boxes)
        _, gt_boxes = enlarge(original, record.boxes)
        rows.append(
            side_by_side(
                draw_detections(image, boxes, one.scores, one.labels, names),
                draw_ground_truth(image, gt_boxes, record.labels, names),
            )
        )
    return contact_sheet(rows, columns=2)
