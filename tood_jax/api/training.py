"""Train a detector, with evaluations on its val split."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.api.training_drawings import DRAWN_IMAGES, TargetDrawings, draw_comparison
from tood_jax.config import Config, ConfigError, DataConfig, save_config, to_dict
from tood_jax.config.validation import check, warnings
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import check_for_training, filter_for_training, load_dataset
from tood_jax.data.loader import count_eval_batches
from tood_jax.data.preprocess import canvases
from tood_jax.data.sampler import images_per_epoch
from tood_jax.data.temporary_files import remove_stale_files
from tood_jax.distributed.host_sync import is_primary
from tood_jax.distributed.process_group import connect_processes
from tood_jax.distributed.sharding import make_mesh
from tood_jax.distributed.signals import StopRequest
from tood_jax.evaluation.coco_ap import format_table
from tood_jax.evaluation.evaluate import Evaluation, evaluate_set
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step
from tood_jax.models.build import build_model
from tood_jax.run_log.goodput import Stopwatch
from tood_jax.run_log.log import RunLog
from tood_jax.run_log.loggers import check_loggers
from tood_jax.training.consistency import check_same_everywhere, describe_process
from tood_jax.training.folder_lock import hold_folder
from tood_jax.training.height_split import check_height_split
from tood_jax.training.loop import Outcome
from tood_jax.training.loop import train as run_training
from tood_jax.training.plan import Plan, make_plan
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import warmup_steps
from tood_jax.untrusted.printable import printable
from tood_jax.weights.load import initial_weights

WriteReports = Callable[[int, Evaluation, Dataset, bool, Callable[[str], object]], None]
"""(step, evaluation, val split, whether it is the last of the run, log)"""


def train(
    config: Config,
    *,
    init_from: str = "",
    devices: Sequence[jax.Device] | None = None,
    began: float | None = None,
    write_reports: WriteReports | None = None,
) -> Outcome:
    """Train a detector by a config, or resume its run; the folder `config.workdir` has the checkpoints and the log.

    The log goes to the terminal too, and SIGTERM and Ctrl-C save first, as with `tood train`.

    Args:
        config: the run, for example of `load_config("configs/NAME.py")`.
        init_from: weights for a new run, as for `tood train --init_from`; "" for random weights.
        devices: the devices to use; all by default.
        began: Unix time from which the run's time is counted (goodput); now by default.
        write_reports: called after each evaluation. An error in it is logged, and never ends the run.

    Returns:
        The last step and state, the metrics of the evaluation after it, and why the run was stopped, if it was.

    Raises:
        ConfigError: the config is invalid, or does not fit the data.
        DataError: the data cannot be read.
        Stopped: a stop was requested while the annotations were read.
        FolderInUseError: another run uses the run's folder.
    """
    check(config)
    check_loggers(config.train.loggers)
    folder = Path(config.workdir)
    watch = Stopwatch(time.time() if began is None else began)
    with (
        StopRequest(has_peers=jax.process_count() > 1) as stop,
        hold_folder(folder, lambda: bool(stop.reason)),
        RunLog(
            folder, config.train.log_every_steps, is_primary(), config.train.loggers, config.name, to_dict(config)
        ) as log,
    ):
        for text in warnings(config):
            log.info(f"Note: {text}")
        train_set, val_set = _load_sets(config.data, log)
        if jax.process_count() > 1:
            check_same_everywhere(describe_process(config, train_set, val_set))
        remove_stale_files()
        mesh = make_mesh(devices, config.parallel.space)
        connect_processes(mesh)
        model = build_model(config, len(train_set.classes))
        _check_height_split(config, len(train_set.classes), mesh, log)
        detect_step = compile_detect_step(model, config, mesh, config.train.eval_losses)
        plan = make_plan(config, images_per_epoch(train_set, config.data))
        evaluate = Evaluator(detect_step, val_set, config, mesh, log, plan, write_reports)
        start = None
        if init_from:
            start = initial_weights(
                init_from, config, partial(build_model, config), class_names(val_set.classes), log.info
            )
        if jax.process_count() == 1:  # several processes stop together, in the loop
            stop.check()
        drawings = TargetDrawings(model, train_set, config, plan.epoch_steps, log)
        outcome = run_training(
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
            on_start=partial(_write_config, config, folder) if is_primary() else None,
            on_phase_start=drawings if config.train.draw_targets and is_primary() else None,
        )
        if not outcome.stopped:
            log.info(f"Done. Next: tood eval --checkpoint {folder}")
        return outcome


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the state of a run on its val split, and logs metrics and drawings."""

    detect_step: Any  # of `compile_detect_step`
    dataset: Dataset
    config: Config
    mesh: Mesh
    log: RunLog
    plan: Plan
    write_reports: WriteReports | None

    def __call__(
        self, state: TrainState, step: int, check: Callable[[], None], is_last: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Return the metrics; `check`, which may raise Stopped, is called before each batch."""

        in_tal_phase = np.asarray(step >= warmup_steps(self.config, self.plan.epoch_steps))
        phase = [in_tal_phase] if self.config.train.eval_losses else []

        data, batch_size = self.config.data, self.config.train.eval_batch_size
        batches, number = count_eval_batches(self.dataset, data, batch_size), itertools.count()

        def detect(*inputs: Any) -> Any:
            check()
            self.log.live_evaluation(next(number), batches)
            return self.detect_step(*inputs, *phase)

        evaluation = evaluate_set(
            detect, state.eval_params, state.batch_stats, self.dataset, data, batch_size, self.mesh
        )
        self.log.live_evaluation(batches, batches)
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
            self._report(step, evaluation, is_last(metrics.to_dict()))
        best = {} if evaluation.thresholds is None else {"thresholds": evaluation.thresholds}
        return metrics.to_dict() | best

    def _report(self, step: int, evaluation: Evaluation, is_last: bool) -> None:
        """Let the program write its reports; an error in them never ends the run."""
        if self.write_reports is None:
            return
        try:
            self.write_reports(step, evaluation, self.dataset, is_last, self.log.info)
        except Exception as error:
            self.log.warn(f"the report of step {step} can't be written ({printable(error) or type(error).__name__})")

    def _log_drawings(self, step: int, found: list[ImageDetections]) -> None:
        """Log drawings of a few images; an error in them never ends the run."""
        try:
            self.log.picture(step, "detections", draw_comparison(found, self.dataset, self.config.data.bit_depth))
        except Exception as error:
            reason = printable(error) or type(error).__name__
            self.log.info(f"warning: the detections of step {step} can't be drawn ({reason})")


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
