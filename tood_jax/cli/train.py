"""train.py: train a detector by a config."""

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

from tood_jax.cli.command_line import parse
from tood_jax.cli.common import report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file, starts_with_keys
from tood_jax.cli.reports import check_report_folder, make_report, report_folder
from tood_jax.config import Config, ConfigError, DataConfig, save_config
from tood_jax.config.validation import warnings
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_dataset import check_for_training, filter_for_training, load_dataset
from tood_jax.data.preprocess import canvases
from tood_jax.data.temporary_files import remove_stale_files
from tood_jax.distributed.host_sync import is_primary
from tood_jax.distributed.process_group import connect_processes, join, leave_at_once
from tood_jax.distributed.sharding import make_mesh
from tood_jax.distributed.signals import EXIT_STATUS, Reason, Stopped, StopRequest
from tood_jax.evaluation.coco_ap import format_table
from tood_jax.evaluation.evaluate import Evaluation, evaluate_set
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.models.detector import canvas_pyramid
from tood_jax.report.history import write_history
from tood_jax.report.write import PAGE
from tood_jax.run_log.goodput import Stopwatch
from tood_jax.run_log.log import RunLog
from tood_jax.training.consistency import check_same_everywhere, describe_process
from tood_jax.training.disk_space import report_full_disk
from tood_jax.training.folder_lock import hold_folder
from tood_jax.training.height_split import check_height_split
from tood_jax.training.loop import Outcome, train
from tood_jax.training.plan import Plan, make_plan
from tood_jax.training.seen_batch import batch_of_step, compile_assignment
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import warmup_steps
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_warning
from tood_jax.visualization.draw import (
    contact_sheet,
    draw_detections,
    draw_ground_truth,
    resize_for_drawing,
    side_by_side,
)
from tood_jax.visualization.targets import draw_targets
from tood_jax.weights.load import initial_weights

PROG = "train.py"
DRAWN_IMAGES = 4  # at each evaluation


@dataclass(frozen=True)
class Args:
    init_from: str = ""
    """Start a new run with these weights: a backbone or a whole detector, in a .pth or .safetensors file, a run's
    folder, hf://USER/REPO[@REVISION][/FILE], https://…/FILE, or the name of an ImageNet backbone: resnet50
    (docs/weights.md). If the classes differ, the classifier starts with random weights. A run that resumes does not
    need it."""
    report: bool = True
    """After each evaluation, write results.csv and results.png; after the last, the report of `tood eval`."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `train.py`; its exit statuses are those of distributed/signals.py, and 1 for an error."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Train a detector, or resume a run that was stopped."
    args, config = parse(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    began = min(time.time(), psutil.Process().create_time())
    try:
        with report_errors(prog), report_full_disk(Path(config.workdir)):
            is_own_config = starts_with_keys("name", "backbone")
            check_output_file("--train.workdir", Path(config.workdir) / "config.json", is_own_config)
            join()
            stopped = run(config, init_from=args.init_from, began=began, report=args.report).stopped
    except Stopped as early:
        print_warning(f"{prog}: stopped on request before the first step; nothing is lost.")
        stopped = early.reason
        leave_at_once(EXIT_STATUS[stopped])
    except KeyboardInterrupt:
        print_warning(f"{prog}: stopped at once; the same command resumes from the newest checkpoint.")
        stopped = Reason.INTERRUPT
    if stopped:
        raise SystemExit(EXIT_STATUS[stopped])


def run(
    config: Config,
    devices: list[jax.Device] | None = None,
    init_from: str = "",
    began: float | None = None,
    report: bool = False,
) -> Outcome:
    """Train by a config, with evaluations on its val split.

    Args:
        config: the run.
        devices: the devices to use; all by default.
        init_from: weights for a new run; "" for random weights.
        began: Unix time from which the run's time is counted (goodput); now by default.
        report: write results.csv and results.png, and at the end the report of the evaluation.

    Raises:
        Stopped: a stop was requested while the annotations were read.
        FolderInUseError: another run uses the run's folder.
    """
    folder = Path(config.workdir)
    watch = Stopwatch(time.time() if began is None else began)
    with (
        StopRequest(has_peers=jax.process_count() > 1) as stop,
        hold_folder(folder, lambda: bool(stop.reason)),
        RunLog(folder, config.train.log_every_steps, is_active=is_primary()) as log,
    ):
        for text in warnings(config):
            log.info(f"Note: {text}")
        train_set, val_set = _load_sets(config.data, log)
        if jax.process_count() > 1:
            check_same_everywhere(describe_process(config, train_set, val_set))
        remove_stale_files()
        if is_primary():
            _write_config(config, folder)
        mesh = make_mesh(devices, config.parallel.space)
        connect_processes(mesh)
        model = build_model(config, len(train_set.classes))
        _check_height_split(config, len(train_set.classes), mesh, log)
        detect_step = compile_detect_step(model, config, mesh, config.train.eval_losses)
        plan = make_plan(config, len(train_set.images))
        evaluate = Evaluator(detect_step, val_set, config, mesh, log, plan, report)
        start = None
        if init_from:
            start = initial_weights(
                init_from, config, partial(build_model, config), class_names(val_set.classes), log.info
            )
        if jax.process_count() == 1:  # several processes stop together, in the loop
            stop.check()
        drawings = TargetDrawings(train_set, config, log)
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
            val_set=val_set,
            on_phase_start=drawings if config.train.draw_targets and is_primary() else None,
        )
        if not outcome.stopped:
            log.info(f"Done. Next: tood eval --checkpoint {folder}")
        return outcome


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the state of a run on its val split, logs metrics and drawings, and writes reports."""

    detect_step: Any  # of `compile_detect_step`
    dataset: Dataset
    config: Config
    mesh: Mesh
    log: RunLog
    plan: Plan
    report: bool

    def __call__(self, state: TrainState, step: int, check: Callable[[], None]) -> dict[str, Any]:
        """Return the metrics; `check`, which may raise Stopped, is called before each batch."""

        in_tal_phase = np.asarray(step >= warmup_steps(self.config, self.plan.epoch_steps))
        phase = [in_tal_phase] if self.config.train.eval_losses else []

        def detect(*inputs: Any) -> Any:
            check()
            return self.detect_step(*inputs, *phase)

        data, batch_size = self.config.data, self.config.train.eval_batch_size
        evaluation = evaluate_set(
            detect, state.eval_params, state.batch_stats, self.dataset, data, batch_size, self.mesh
        )
        metrics, found = evaluation.metrics, evaluation.detections
        names = class_names(self.dataset.classes)
        self.log.metrics(step, {**metrics.to_dict(), **evaluation.losses, "images": len(found)}, kind="eval")
        self.log.scalars(
            step,
            {
                f"eval/class_ap/{label:03d}_{name}": ap
                for label, (name, ap) in enumerate(zip(names, metrics.class_ap, strict=True))
            },
        )
        table = format_table(metrics, names)
        self.log.info(f"Step {step}, {len(found)} images of {self.config.data.val.source}:\n{table}")
        if evaluation.losses:
            losses = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.losses.items())
            self.log.info(f"Validation: {losses}")
        if evaluation.left_out:
            self.log.info(f"Evaluation: {evaluation.left_out}")
        if found and not any(len(detections.scores) for detections in found):
            self.log.info("Note: no detection exceeds detect.score_threshold yet.")
        elif metrics.AP == 0:
            self.log.info("Note: there are detections, but none matches an object yet.")
        if is_primary():
            self._log_drawings(step, found[:DRAWN_IMAGES])
            if self.report:
                self._write_reports(step, evaluation)
        best = {} if evaluation.thresholds is None else {"thresholds": evaluation.thresholds}
        return metrics.to_dict() | best

    def _write_reports(self, step: int, evaluation: Evaluation) -> None:
        """Write results.csv and results.png, and at the end the report; an error in them never ends the run."""
        folder = Path(self.config.workdir)
        try:
            write_history(folder)
            if step >= self.plan.total_steps and self.dataset.has_annotations:
                target = report_folder(folder, step)
                check_report_folder(target)
                if make_report(target, evaluation, self.dataset, self.config, step, self.log.info):
                    self.log.info(f"Report: {target / PAGE}")
        except Exception as error:
            self.log.warn(f"the report of step {step} can't be written ({printable(error) or type(error).__name__})")

    def _log_drawings(self, step: int, found: list[ImageDetections]) -> None:
        """Log drawings of a few images; an error in them never ends the run."""
        try:
            self.log.picture(step, "detections", draw_comparison(found, self.dataset, self.config.data.bit_depth))
        except Exception as error:
            reason = printable(error) or type(error).__name__
            self.log.info(f"warning: the detections of step {step} can't be drawn ({reason})")


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


def _load_sets(data: DataConfig, log: RunLog) -> tuple[Dataset, Dataset]:
    """Return the train and the val split. Raises ConfigError if their classes differ."""
    train_set = filter_for_training(load_dataset(data.train, data.broken_images, for_evaluation=False), data)
    val_set = load_dataset(data.val, data.broken_images, for_evaluation=is_primary())
    check_for_training(train_set, val_set, data)
    for split, dataset in (("train", train_set), ("val", val_set)):
        log.info(f"{split}: {dataset.report.summary()}")
    if train_set.classes != val_set.classes:
        raise ConfigError(
            f"The categories of {data.train.source} and {data.val.source} differ: "
            f"{list(class_names(train_set.classes))} and {list(class_names(val_set.classes))}. "
            "Both must have the same categories with the same ids."
        )
    return train_set, val_set


def _write_config(config: Config, folder: Path) -> None:
    """Save the config in the run's folder, and remove temporary files that a killed process left there."""
    for unfinished in folder.glob(".config.json.*.tmp"):
        unfinished.unlink(missing_ok=True)
    save_config(config, folder / "config.json")


def _check_height_split(config: Config, num_classes: int, mesh: Mesh, log: RunLog) -> None:
    in_float32 = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    check_height_split(build_model(in_float32, num_classes), config, mesh, canvases(config.data), log.info)
