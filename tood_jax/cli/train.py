"""train.py: from a config to a trained detector."""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from jax.sharding import Mesh

from tood_jax.build import build_model
from tood_jax.cli.common import said_in_one_sentence, use_compilation_cache
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError, save_config
from tood_jax.config_rules import warnings
from tood_jax.data.batching import canvases
from tood_jax.data.coco import CocoSet
from tood_jax.data.decode import decode_image
from tood_jax.data.sets import load_set
from tood_jax.evaluation.coco_ap import CocoMetrics, format_table
from tood_jax.evaluation.evaluate import evaluate_set
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step
from tood_jax.training.goodput import Stopwatch
from tood_jax.training.loop import Outcome, train
from tood_jax.training.messages import is_first
from tood_jax.training.processes import join, leave_at_once, meet
from tood_jax.training.records import RunLog
from tood_jax.training.sharding import make_mesh
from tood_jax.training.signals import EXIT_STATUS, Reason, Stopped, StopRequest
from tood_jax.training.space_check import check_space
from tood_jax.training.state import TrainState
from tood_jax.visualize.draw import contact_sheet, draw_detections, draw_ground_truth, enlarge, side_by_side
from tood_jax.weights.load import start_from

PICTURES = 4  # images drawn at every evaluation


@dataclass(frozen=True)
class Args:
    init_from: str = ""
    """Begin with these weights: a backbone or a whole detector, in a .pth or .safetensors file or a run's folder
    (docs/weights.md). The classifier starts anew if the classes differ. A run that goes on doesn't need it."""


def main(argv: list[str] | None = None) -> None:
    """The door `train.py`; its exit statuses are those of training/signals.py, and 1 for an error."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = parse(Args, argv, prog="train.py", description="Train a detector, or go on where a run stopped.")
    use_compilation_cache()
    began = min(time.time(), psutil.Process().create_time())
    try:
        with said_in_one_sentence("train.py"):
            join()
            stopped = run(config, init_from=args.init_from, began=began).stopped
    except Stopped as early:
        print("train.py: stopped on request before the first step; nothing is lost.", file=sys.stderr)
        stopped = early.reason
        leave_at_once(EXIT_STATUS[stopped])
    except KeyboardInterrupt:
        print("train.py: stopped at once; the same command goes on from the newest checkpoint.", file=sys.stderr)
        stopped = Reason.INTERRUPT
    if stopped:
        raise SystemExit(EXIT_STATUS[stopped])


def run(
    config: Config, devices: list[jax.Device] | None = None, init_from: str = "", began: float | None = None
) -> Outcome:
    """Train by a config on the given devices (all by default), evaluating on its val split.

    Args:
        init_from: a new run begins with these weights, unless this is "".
        began: Unix time from which the run's time is counted (goodput); now, by default.

    Raises:
        Stopped: a stop was asked for while the annotations were read.
    """
    folder = Path(config.workdir)
    watch = Stopwatch(time.time() if began is None else began)
    with (
        StopRequest() as stop,
        RunLog(folder, config.train.log_every_steps, speaks=is_first()) as log,
    ):
        for text in warnings(config):
            log.say(f"Note: {text}")
        train_set, val_set = _load(config, log)
        if is_first():
            save_config(config, folder / "config.json")
        mesh = make_mesh(devices, config.parallel.space)
        meet(mesh)
        model = build_model(config, len(train_set.classes))
        _check_space(config, len(train_set.classes), mesh, log)
        detect_step = compile_detect_step(model, config, mesh)
        names = [one.name for one in val_set.classes]

        def evaluate(state: TrainState, step: int, check: Callable[[], None]) -> dict[str, Any]:
            def detect(*inputs: Any) -> Any:
                check()
                return detect_step(*inputs)

            evaluation = evaluate_set(detect, state.eval_params, state.batch_stats, val_set, config, mesh)
            metrics, found = evaluation.metrics, evaluation.found
            log.metrics(step, {**metrics.to_dict(), "images": len(found)}, kind="eval")
            log.say(f"Step {step}, {len(found)} images of {config.data.val.place}:\n{format_table(metrics, names)}")
            if evaluation.left_out:
                log.say(f"Evaluation: {evaluation.left_out}")
            _warn_of_nothing_found(metrics, found, log)
            if is_first():
                log.picture(step, "detections", _draw(found[:PICTURES], val_set, names))
            return metrics.to_dict()

        start = (
            start_from(init_from, config, partial(build_model, config), tuple(names), log.say) if init_from else None
        )
        if jax.process_count() == 1:  # several stop together, in the loop
            stop.check()
        outcome = train(
            config,
            model=model,
            train_set=train_set,
            mesh=mesh,
            log=log,
            evaluate=evaluate,
            stop=stop,
            watch=watch,
            start_from=start,
        )
        if not outcome.stopped:
            log.say(f"Done. Next: python eval.py --checkpoint {folder}")
        return outcome


def _check_space(config: Config, num_classes: int, mesh: Mesh, log: RunLog) -> None:
    in_float32 = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    check_space(build_model(in_float32, num_classes), config, mesh, canvases(config.data), log.say)


def _load(config: Config, log: RunLog) -> tuple[CocoSet, CocoSet]:
    """Both splits, after checking that they speak of the same classes."""
    train_set, val_set = load_set(config.data.train), load_set(config.data.val)
    for split, dataset in (("train", train_set), ("val", val_set)):
        log.say(f"{split}: {dataset.report.summary()}")
    if train_set.classes != val_set.classes:
        raise ConfigError(
            f"The categories of {config.data.train.place} and {config.data.val.place} differ: "
            f"{[one.name for one in train_set.classes]} and {[one.name for one in val_set.classes]}. "
            "Both must list the same categories with the same ids."
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
