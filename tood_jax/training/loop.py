"""The training loop: feed, step, check, log, evaluate, save; and go on after any interruption.

The data position is the step number alone (see data/batching.py), so a resumed run sees exactly the batches that an
unbroken one would have seen.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tood_jax.config import Config, to_dict
from tood_jax.data.batching import canvases
from tood_jax.data.coco import CocoSet
from tood_jax.data.pipeline import train_batches
from tood_jax.detectors.detector import Detector
from tood_jax.training.checkpoints import CheckpointStore
from tood_jax.training.goodput import Ledger, Stopwatch
from tood_jax.training.messages import is_first
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.plan import Plan, make_plan
from tood_jax.training.records import RunLog
from tood_jax.training.reporting import Pace, announce, counts_of_all, log_window
from tood_jax.training.restoring import StartFrom, restore_or_init
from tood_jax.training.sharding import check_batch, check_canvases
from tood_jax.training.signals import Reason, Stopped, StopRequest
from tood_jax.training.state import TrainState
from tood_jax.training.step import compile_train_step
from tood_jax.training.stepper import Row, Stepper
from tood_jax.types import Batch

Evaluate = Callable[[TrainState, int, Callable[[], None]], dict[str, Any]]
"""(state, step, check) to metrics with "AP" among them; calls `check`, which may raise Stopped, between its batches."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message says where and what was saved."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: TrainState
    step: int
    stopped: Reason  # NONE: trained to its end; else stopped on request, and resumable
    metrics: dict[str, Any] | None  # of the last evaluation


def train(
    config: Config,
    *,
    model: Detector,
    train_set: CocoSet,
    mesh: Mesh,
    log: RunLog,
    evaluate: Evaluate,
    stop: StopRequest,
    watch: Stopwatch | None = None,
    start_from: StartFrom | None = None,
) -> Outcome:
    """Train to the end, or to a request to stop, from the newest checkpoint in the run's folder if there is one.

    Without a checkpoint it begins with random weights, or with what `start_from` (--init_from) puts in their place.
    The state is saved before it is evaluated, so that a stop in the middle of an evaluation loses nothing: the next
    start evaluates.

    Raises:
        NonFiniteLossError: after saving the state before the bad step and its batch.
        ConfigError: if the batch or a canvas can't be split over the mesh.
    """
    check_batch(config.train.batch_size, mesh, config.train.accumulate_steps)
    check_batch(config.train.eval_batch_size, mesh)
    check_canvases(canvases(config.data), mesh)
    plan = make_plan(config, len(train_set.images))
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
    with CheckpointStore(folder / "checkpoints", config.train.keep_checkpoints, log.say) as store:
        state, step, about = restore_or_init(config, model, optimizer, mesh, store, log, start_from)
        watch.started()
        metrics = about.get("metrics")
        if step >= plan.total_steps and metrics is not None:
            log.say(f"{folder} is trained to its end (step {step}). Raise train.epochs to train on.")
            return Outcome(state, step, Reason.NONE, metrics)
        if step < plan.total_steps:
            announce(config, plan, step, train_set, log, random_backbone=step == 0 and start_from is None)
        with contextlib.closing(_feed(config, train_set, plan, step)) as feed:
            stepper = Stepper(step_fn, state, feed, mesh, stop, watch)
            del state  # the stepper gives its buffers away
            ledger = Ledger(log.appender("goodput.jsonl"), watch)
            unlogged = list(about.get("unlogged", []))
            run = _Run(
                config, plan, train_set, store, log, evaluate, stepper, feed, watch, ledger, step, unlogged, metrics
            )
            return run.to_the_end()


@dataclass
class _Run:
    """A run under way; `step` of its steps are done, and `unlogged` holds the numbers of those since the last line."""

    config: Config
    plan: Plan
    train_set: CocoSet
    store: CheckpointStore
    log: RunLog
    evaluate: Evaluate
    stepper: Stepper
    feed: Any
    watch: Stopwatch
    ledger: Ledger
    step: int
    unlogged: list[Row]
    metrics: dict[str, Any] | None  # of the last evaluation

    def to_the_end(self) -> Outcome:
        """Steps, saves and evaluates till all is done or a stop was asked for."""
        plan, stepper = self.plan, self.stepper
        self.ledger.mark(self.step)
        if plan.evaluates_at(self.step) and self.metrics is None:  # it was stopped between this step and its evaluation
            self._evaluate()
        pace = Pace(self.watch)
        while self.step < plan.total_steps and not stepper.reason:
            for row, batch in stepper.rows(plan.next_save(self.step) - self.step):
                if not row["finite"]:
                    self._save()
                    self.store.wait()
                    raise NonFiniteLossError(_keep_evidence(Path(self.config.workdir), self.step, row, batch))
                self._count(row, pace)
            self._save()
            if plan.evaluates_at(self.step) and not stepper.reason:
                self._evaluate()
        with self.watch.spend("saving"):
            self.store.wait()
        self.ledger.mark(self.step)
        finished = self.step == plan.total_steps and self.metrics is not None
        if not finished:
            saved = self.store.latest_step()
            self.log.say(
                f"Stopped on request ({stepper.reason.name.lower()}) at step {self.step} of {plan.total_steps}. The "
                f"same command goes on from {'the beginning' if saved is None else f'checkpoint {saved}'}."
            )
        self.log.say(self.ledger.sentence())
        return Outcome(stepper.state, self.step, Reason.NONE if finished else stepper.reason, self.metrics)

    def _count(self, row: Row, pace: Pace) -> None:
        """One step more is done."""
        self.step += 1
        self.unlogged.append(row)
        pace.count(self.config.train.batch_size)
        if self.step % self.config.train.log_every_steps == 0 or self.step == self.plan.total_steps:
            self.ledger.mark(self.step)
            log_window(self.config, self.plan, self.step, self.unlogged, pace, self.ledger, self.log)
        at_an_end = self.step in (self.plan.epoch_steps, self.plan.total_steps)
        if at_an_end and (left_out := counts_of_all(self.feed.counts).summary()):
            self.log.say(f"Training data so far: {left_out}")

    def _save(self, metrics: dict[str, Any] | None = None) -> None:
        about = _about(self.config, self.train_set, self.step, self.unlogged)
        with self.watch.spend("saving"):
            self.store.save(self.step, self.stepper.state, about, metrics)
        self.ledger.mark(self.step)

    def _evaluate(self) -> None:
        """Evaluates and adds the metrics to the checkpoint; asked to stop on the way, leaves that to the next start."""
        self.metrics = None
        with contextlib.suppress(Stopped), self.watch.spend("evaluating"):
            self.metrics = self.evaluate(self.stepper.state, self.step, self.stepper.check)
        if self.metrics is not None:
            self._save(self.metrics)


def _about(config: Config, train_set: CocoSet, step: int, unlogged: list[Row]) -> dict[str, Any]:
    """What a checkpoint says of itself; `eval.py` and `predict.py` need nothing else."""
    return {
        "config": to_dict(config),
        "classes": [{"id": one.id, "name": one.name} for one in train_set.classes],
        # All randomness is a function of the seed and the step, so these two are the state of every generator.
        "data": {"seed": config.train.seed, "next_batch": step},
        "unlogged": unlogged,
    }


def _feed(config: Config, train_set: CocoSet, plan: Plan, step: int) -> Any:
    return train_batches(
        train_set,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=step,
        num_steps=plan.total_steps - step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _keep_evidence(folder: Path, step: int, row: Row, batch: Batch) -> str:
    """Save the batch and the numbers of a non-finite step; returns what to tell the user."""
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    evidence = folder / f"non_finite_step_{step}"
    rows_of = f"_of_process_{jax.process_index()}" if jax.process_count() > 1 else ""  # each has its share of the batch
    evidence.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(evidence / f"batch{rows_of}.npz", **batch._asdict())
    if is_first():
        (evidence / "metrics.json").write_text(json.dumps({name: str(value) for name, value in row.items()}, indent=1))
    return (
        f"Step {step} gave a non-finite {', '.join(bad)}. The weights before it are saved in "
        f"{folder}/checkpoints/{step}, its batch and numbers in {evidence}. Usual causes: a learning rate too high "
        "(optimizer.learning_rate), no clipping (optimizer.clip_norm=10), or broken boxes in the annotations."
    )
