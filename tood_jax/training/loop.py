"""The training loop: run steps, log, save and evaluate, from the newest checkpoint to the end of the plan.

The data position is the step number alone (see data/sampler.py), so a resumed run sees exactly the batches that an
uninterrupted one would have seen.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.config import Config
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import train_batches
from tood_jax.data.preprocess import canvases
from tood_jax.data.sampler import images_per_epoch
from tood_jax.distributed.data_counts import sum_over_processes
from tood_jax.distributed.host_sync import broadcast_json, is_primary
from tood_jax.distributed.sharding import check_batch, check_canvases
from tood_jax.distributed.signals import Reason, Stopped, StopRequest
from tood_jax.models.detector import Detector
from tood_jax.run_log.goodput import Ledger, Stopwatch
from tood_jax.run_log.log import RunLog
from tood_jax.training.collapse import CollapseError, CollapseWatch
from tood_jax.training.disk_space import NotSavedError
from tood_jax.training.early_end import EarlyEnd
from tood_jax.training.non_finite import NonFiniteLossError, save_evidence
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.plan import Plan, make_plan
from tood_jax.training.progress import Pace, log_plan, log_window
from tood_jax.training.resume import StartFrom, restore_or_init
from tood_jax.training.run_description import RunDescription
from tood_jax.training.state import TrainState
from tood_jax.training.step_profile import StepProfile
from tood_jax.training.stepper import Row, Stepper
from tood_jax.training.train_step import compile_train_step, warmup_steps

FINAL_SAVE_SECONDS = 300.0  # time for the attempts to save the last state on a failing disk
_MAX_PAUSE = 30.0  # between two of these attempts, seconds

Evaluate = Callable[[TrainState, int, Callable[[], None], Callable[[dict[str, Any]], bool]], dict[str, Any]]
"""(state, step, check, is_last) to metrics with "AP" among them; calls `check`, which may raise Stopped, between its
batches. `is_last` returns, by the metrics, whether the run ends with this evaluation."""
OnPhaseStart = Callable[[TrainState, int], None]
"""(state, step), at the first step of each phase: of the run, and of task alignment learning after the warm-up."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: TrainState
    step: int
    stopped: Reason  # NONE: trained to its end; otherwise stopped on request, and resumable
    metrics: dict[str, Any] | None  # of the evaluation after the last step; None if it was stopped before that


def train(
    config: Config,
    *,
    model: Detector,
    train_set: Dataset,
    mesh: Mesh,
    log: RunLog,
    evaluate: Evaluate,
    stop: StopRequest,
    watch: Stopwatch | None = None,
    start_from: StartFrom | None = None,
    val_set: Dataset | None = None,
    on_start: Callable[[], object] | None = None,
    on_phase_start: OnPhaseStart | None = None,
) -> Outcome:
    """Train to the end, or to a request to stop, from the newest checkpoint in the run's folder if there is one.

    Without a checkpoint it begins with random weights, or with what `start_from` (--init_from) replaces them by. The
    state is saved before it is evaluated, so that a stop during an evaluation loses nothing: the next start evaluates.

    Args:
        val_set: data set of `evaluate`, to be compared with the checkpoint's.
        on_start: called when it is known that the run begins, or can be resumed with this config and these data.
        on_phase_start: called by the processes that have one; it must not wait for other processes.

    Raises:
        CheckpointError: the run's checkpoint is of other classes, or of other data and that is not accepted.
        NonFiniteLossError: a step was not finite; the state before it and its batch are saved.
        NotSavedError: the last state could not be written to the disk.
        CollapseError: there is nothing left to learn from (train.on_collapse = stop).
        ConfigError: the batch or a canvas cannot be split over the mesh.
    """
    check_batch(config.train.batch_size, mesh, config.train.accumulate_steps)
    check_batch(config.train.eval_batch_size, mesh)
    check_canvases(canvases(config.data), mesh)
    plan = make_plan(config, images_per_epoch(train_set, config.data))
    schedule = learning_rate_schedule(
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=plan.epoch_steps,
        epochs=config.train.epochs,
    )
    optimizer = make_optimizer(config)
    step_fn = compile_train_step(model, config, optimizer, schedule, plan.epoch_steps, mesh, chained=True)
    folder = Path(config.workdir)
    watch = watch or Stopwatch(time.time())
    splits = {"train": train_set} | ({} if val_set is None else {"val": val_set})
    description = RunDescription(config, plan, splits, folder / "checkpoints")
    with CheckpointStore(
        folder / "checkpoints", config.train.keep_checkpoints, log.info, best=config.train.best
    ) as store:
        state, step, about = restore_or_init(config, model, optimizer, mesh, store, log, start_from, description.check)
        if on_start is not None:
            on_start()
        if description.note:
            log.info(description.note)
        watch.started()
        metrics = about.get("metrics")
        if step > plan.total_steps:
            log.info(f"The plan ends at step {plan.total_steps}, and {folder} is trained to step {step} already.")
        if step >= plan.total_steps and metrics is not None:
            log.info(f"{folder} is trained to its end (step {step}). Raise train.epochs to train on.")
            return Outcome(state, step, Reason.NONE, metrics)
        ledger = Ledger(log.appender("goodput.jsonl"), watch)
        early_end = EarlyEnd(config.train, ledger, warmup_steps(config, plan.epoch_steps), about.get("early_end"))
        if metrics is not None and early_end.has_come():
            log.info(f"{folder} has ended at step {step}: {early_end.describe()}. Raise that limit to train on.")
            return Outcome(state, step, Reason.NONE, metrics)
        if step < plan.total_steps:
            log_plan(config, plan, step, train_set, log, random_backbone=step == 0 and start_from is None)
        with contextlib.closing(_train_batches(config, train_set, plan, step)) as batches:
            stepper = Stepper(step_fn, state, batches, mesh, stop, watch, early_end.is_out_of_time)
            del state  # the stepper donates its buffers
            return _Run(
                config=config,
                plan=plan,
                about=description.about,
                store=store,
                log=log,
                evaluate=evaluate,
                on_phase_start=on_phase_start,
                stepper=stepper,
                batches=batches,
                watch=watch,
                ledger=ledger,
                collapse=CollapseWatch(config.train.collapse_steps, about.get("bad_steps", 0)),
                early_end=early_end,
                profile=StepProfile(config.profile_steps, folder, log, is_primary()),
                step=step,
                unlogged=list(about.get("unlogged", [])),
                metrics=metrics,
            ).run_to_end()


@dataclass
class _Run:
    """A run under way."""

    config: Config
    plan: Plan
    about: dict[str, Any]  # of checkpoints: the part that stays the same
    store: CheckpointStore
    log: RunLog
    evaluate: Evaluate
    on_phase_start: OnPhaseStart | None
    stepper: Stepper
    batches: Any  # of data/loader.py, with counts of what was left out
    watch: Stopwatch
    ledger: Ledger
    collapse: CollapseWatch
    early_end: EarlyEnd
    profile: StepProfile
    step: int  # number of steps done
    unlogged: list[Row]  # numbers of the steps since the last line of the log
    metrics: dict[str, Any] | None  # of the evaluation after exactly this step

    def run_to_end(self) -> Outcome:
        """Step, save and evaluate to the end of the plan, or until a stop was requested."""
        plan, stepper = self.plan, self.stepper
        self.ledger.mark(self.step)
        if plan.evaluates_at(self.step) and self.metrics is None:  # stopped between this step and its evaluation
            self._evaluate()
        phase_starts = (0, warmup_steps(self.config, plan.epoch_steps))
        boundaries = (*phase_starts, *self.profile.boundaries)
        pace = Pace(self.watch)
        while not self._is_over and not stepper.reason:
            if self.on_phase_start and self.step in phase_starts:
                with self.watch.spend("evaluating"):
                    self.on_phase_start(stepper.state, self.step)
            save_step = plan.next_save(self.step)
            self.profile.before(self.step)
            self._run_steps(min(step for step in (*boundaries, save_step) if step > self.step) - self.step, pace)
            with self.watch.spend("evaluating"):
                self.profile.after(self.step)
            if self.step < save_step and not stepper.reason:
                continue
            if self.step < plan.total_steps and self.collapse.is_suspicious:
                self.log.info(f"Step {self.step} is neither saved nor evaluated: it had almost nothing to learn.")
                continue
            self._save()
            if plan.evaluates_at(self.step) and not stepper.reason:
                self._evaluate()
        self.profile.end(self.step)  # stopped inside it
        if stepper.reason is Reason.OUT_OF_TIME and not self.collapse.is_suspicious and self.metrics is None:
            self._evaluate()
        with self.watch.spend("saving"):
            self.store.wait()
        if self.metrics is not None:
            self._ensure_saved()
        self.ledger.mark(self.step)
        is_finished = self._is_over and self.metrics is not None
        if is_finished and self.step < plan.total_steps:
            self.log.info(f"The run ends at step {self.step} of {plan.total_steps}: {self.early_end.describe()}.")
        if not is_finished:
            self.log.info(
                f"Stopped on request ({stepper.reason.name.lower()}) at step {self.step} of {plan.total_steps}. The "
                f"same command goes on from {self._resume_point()}."
            )
        self.log.info(self.ledger.sentence())
        return Outcome(stepper.state, self.step, Reason.NONE if is_finished else stepper.reason, self.metrics)

    @property
    def _is_over(self) -> bool:
        """Whether no step is left: by the plan, or because a limit of the config has come."""
        is_out_of_time = self.stepper.reason is Reason.OUT_OF_TIME
        return self.step >= self.plan.total_steps or self.early_end.is_out_of_patience or is_out_of_time

    def _is_last(self, metrics: dict[str, Any]) -> bool:
        return self._is_over or self.early_end.would_end_after(self.step, metrics)

    def _run_steps(self, steps: int, pace: Pace) -> None:
        for row, batch in self.stepper.rows(steps):
            if not row["finite"]:
                self.profile.end(self.step)
                self._save()
                self.store.wait()
                raise NonFiniteLossError(save_evidence(Path(self.config.workdir), self.step, row, batch))
            self._count(row, pace)

    def _count(self, row: Row, pace: Pace) -> None:
        """Count a step that is done, and log at the steps where the log has a line."""
        self.step += 1
        self.metrics = None
        self.unlogged.append(row)
        # While the learning rate warms up, boxes may be almost empty because nothing was learnt yet.
        if self.step > self.config.optimizer.warmup_steps and self.collapse.count(row):
            self._report_collapse()
        pace.count(self.config.train.batch_size)
        self.log.live_step(self.step, self.plan.total_steps, row["loss"], self.config.train.batch_size, pace.seconds())
        if self.step % self.config.train.log_every_steps == 0 or self.step == self.plan.total_steps:
            self.ledger.mark(self.step)
            log_window(self.config, self.plan, self.step, self.unlogged, pace, self.ledger, self.log)
        if self.step in (self.plan.epoch_steps, self.plan.total_steps):
            left_out = sum_over_processes(self.batches.counts).summary()
            if left_out:
                self.log.info(f"Training data so far: {left_out}")

    def _report_collapse(self) -> None:
        """Warn, or end the run; all checkpoints are of steps before the first bad one."""
        text = self.collapse.describe(self.step, self.config)
        if self.config.train.on_collapse == "warn":
            self.log.warn(text)
            return
        self.store.wait()
        saved = self.store.latest_step()
        kept = "No checkpoint was saved before." if saved is None else f"Checkpoint {saved}, from before, is kept."
        self.log.info(f"{text} {kept} To train on all the same: --train.on_collapse=warn.")
        log_file = f"{self.config.workdir}/train.log"
        raise CollapseError(f"training has collapsed and was stopped at step {self.step}; {log_file} has the causes.")

    def _save(self, metrics: dict[str, Any] | None = None) -> None:
        about = {
            **self.about,
            # All randomness is a function of the seed and the step, so these two are the state of every generator.
            "data": {"seed": self.config.train.seed, "next_batch": self.step},
            "unlogged": self.unlogged,
            "bad_steps": self.collapse.bad_steps,
            "early_end": self.early_end.state,
        }
        with self.watch.spend("saving"):
            self.store.save(self.step, self.stepper.state, about, metrics)
        self.ledger.mark(self.step)

    def _ensure_saved(self) -> None:
        """Check that the final state is on the disk, or try to save it again for a while. Raises NotSavedError."""
        begin, pause = time.monotonic(), 1.0
        while not self.store.holds(self.step, evaluated=True):
            if pause == 1:
                text = f"Step {self.step} is the last one and not on the disk yet; trying again for"
                self.log.info(f"{text} {FINAL_SAVE_SECONDS:g} s.")
            is_late = broadcast_json(lambda: time.monotonic() - begin > FINAL_SAVE_SECONDS)
            if is_late or self._is_stopped():
                raise NotSavedError(
                    f"The final state (step {self.step}) could not be saved in {self.store.folder}: make room there; "
                    f"the same command goes on from {self._resume_point()}."
                )
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)
            self._save(self.metrics)

    def _resume_point(self) -> str:
        saved = self.store.latest_step()
        return "the beginning" if saved is None else f"checkpoint {saved}"

    def _is_stopped(self) -> bool:
        try:
            self.stepper.check()
        except Stopped:
            return True
        return False

    def _evaluate(self) -> None:
        """Evaluate and add the metrics to the checkpoint; after a request to stop, the next start evaluates."""
        self.metrics = None
        with contextlib.suppress(Stopped), self.watch.spend("evaluating"):
            self.metrics = self.evaluate(self.stepper.state, self.step, self.stepper.check, self._is_last)
        if self.metrics is not None:
            self.early_end.count(self.step, self.metrics)
            self._save(self.metrics)


def _train_batches(config: Config, train_set: Dataset, plan: Plan, step: int) -> Any:
    return train_batches(
        train_set,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=step,
        num_steps=max(0, plan.total_steps - step),
        epochs=config.train.epochs,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
