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
import optax
from jax.sharding import Mesh

from tood_jax.config import Config, to_dict
from tood_jax.data.batching import steps_per_epoch
from tood_jax.data.coco import CocoSet
from tood_jax.data.pipeline import describe_batches, train_batches
from tood_jax.detectors.tood import Tood
from tood_jax.training.checkpoints import CheckpointStore
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer, scaled_learning_rate
from tood_jax.training.records import RunLog, format_eta, images_per_second, memory_report
from tood_jax.training.sharding import put_batch, replicated
from tood_jax.training.signals import StopRequest
from tood_jax.training.state import TrainState, init_state
from tood_jax.training.step import compile_train_step, warmup_steps
from tood_jax.types import Batch

Row = dict[str, float]  # the scalars of one step
Evaluate = Callable[[TrainState, int], dict[str, Any]]  # (state, step) to metrics with "AP" among them


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message says where and what was saved."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: TrainState
    step: int
    finished: bool  # False: stopped on request, and resumable
    metrics: dict[str, Any] | None  # of the last evaluation


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from its config and its data set."""

    epoch_steps: int
    total_steps: int
    eval_every: int  # steps; 0 = only at the end

    def evaluates_at(self, step: int) -> bool:
        return step == self.total_steps or bool(step and self.eval_every and step % self.eval_every == 0)


def make_plan(config: Config, num_images: int) -> Plan:
    """Steps of an epoch and of the whole run."""
    epoch = steps_per_epoch(num_images, config.train.batch_size)
    return Plan(epoch, epoch * config.train.epochs, epoch * config.train.eval_every_epochs)


def train(config: Config, *, model: Tood, train_set: CocoSet, mesh: Mesh, log: RunLog, evaluate: Evaluate) -> Outcome:
    """Train to the end, or to a request to stop, from the newest checkpoint in the run's folder if there is one.

    Raises:
        NonFiniteLossError: after saving the state before the bad step and its batch.
    """
    plan = make_plan(config, len(train_set.images))
    schedule = learning_rate_schedule(
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=plan.epoch_steps,
        epochs=config.train.epochs,
    )
    optimizer = make_optimizer(config, schedule)
    step_fn = compile_train_step(model, config, optimizer, schedule, plan.epoch_steps, mesh)
    folder = Path(config.workdir)
    with CheckpointStore(folder / "checkpoints", config.train.keep_checkpoints, log.say) as store:
        state, step, about = _restore_or_init(config, model, optimizer, mesh, store, log)
        unlogged: list[Row] = list(about.get("unlogged", []))
        metrics = about.get("metrics")

        def save() -> None:
            store.save(
                step, state, _about(config, train_set, step, unlogged), metrics if plan.evaluates_at(step) else None
            )

        if plan.evaluates_at(step) and metrics is None:  # it was stopped between this step and its evaluation
            metrics = evaluate(state, step)
            save()
        if step >= plan.total_steps:
            log.say(f"{folder} is trained to its end (step {step}). Raise train.epochs to train on.")
            return Outcome(state, step, True, metrics)
        _announce(config, plan, step, train_set, log)
        feed = _feed(config, train_set, plan, step)
        with StopRequest(log.say) as stop, contextlib.closing(feed):
            pace = Pace(feed)
            batch, on_device = _next(feed, mesh)
            while True:
                state, device_row = step_fn(state, on_device)
                following = _next(feed, mesh) if step + 1 < plan.total_steps else None  # while the device computes
                row = {name: float(value) for name, value in jax.device_get(device_row).items()}
                if not row["finite"]:
                    save()
                    raise NonFiniteLossError(_keep_evidence(folder, step, row, batch))
                step += 1
                unlogged.append(row)
                pace.count(config.train.batch_size)
                if step % config.train.log_every_steps == 0 or step == plan.total_steps:
                    _log_window(config, plan, step, unlogged, pace, log)
                if plan.evaluates_at(step):
                    metrics = evaluate(state, step)
                    pace.restart()
                if step in (plan.epoch_steps, plan.total_steps) and (left_out := feed.counts.summary()):
                    log.say(f"Training data so far: {left_out}")
                if plan.evaluates_at(step) or step % config.train.checkpoint_every_steps == 0 or stop.requested:
                    save()
                if following is None or stop.requested:
                    break
                batch, on_device = following
        store.wait()
        finished = step == plan.total_steps
        if not finished:
            log.say(f"Stopped and saved at step {step} of {plan.total_steps}. The same command goes on from there.")
    return Outcome(state, step, finished, metrics)


class Pace:
    """Rates since the last line of the log: images/s, and the share of time spent waiting for data."""

    def __init__(self, feed: Any):
        self._feed = feed
        self.restart()

    def restart(self) -> None:
        """Begin a new span of time, from now."""
        self._start, self._waited, self._images = time.perf_counter(), self._feed.waiting_seconds, 0

    def count(self, images: int) -> None:
        """That many images were trained on."""
        self._images += images

    def read(self) -> tuple[float, float]:
        """(images/s, share 0–1 of waiting) of the span; begins the next span."""
        images, seconds = self._images, time.perf_counter() - self._start
        waited = self._feed.waiting_seconds - self._waited
        self.restart()
        return images_per_second(images, seconds), min(1.0, waited / max(seconds, 1e-9))


def _restore_or_init(
    config: Config,
    model: Tood,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    store: CheckpointStore,
    log: RunLog,
) -> tuple[TrainState, int, dict[str, Any]]:
    """(state, step, about): the newest whole checkpoint, or the beginning."""
    keep_ema = config.optimizer.ema_decay is not None

    def fresh() -> TrainState:
        return init_state(model, optimizer, seed=config.train.seed, keep_ema=keep_ema)

    everywhere = replicated(mesh)
    if store.latest_step() is None:
        log.resume_from(0)
        return jax.device_put(fresh(), everywhere), 0, {}
    shapes = jax.eval_shape(fresh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    state, about = store.restore(abstract)
    step = int(about["step"])
    log.resume_from(step)
    log.say(f"Going on from step {step} of {store.folder}.")
    changed = changed_fields(about["config"], to_dict(config))
    if changed:
        log.say("The config differs from that of the checkpoint in " + ", ".join(changed) + ": the present one rules.")
    return state, step, about


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two config dictionaries differ."""
    names = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += changed_fields(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b):
            names.append(f"{prefix}{key}")
    return names


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


def _next(feed: Any, mesh: Mesh) -> tuple[Batch, Batch]:
    """The next batch on the host and on the devices."""
    batch = next(feed)
    return batch, put_batch(batch, mesh)


def _announce(config: Config, plan: Plan, step: int, train_set: CocoSet, log: RunLog) -> None:
    rate = scaled_learning_rate(config.optimizer, config.train.batch_size)
    warm = warmup_steps(config, plan.epoch_steps)
    padding = describe_batches(train_set, config.data, config.train.batch_size, config.train.seed)
    log.say(
        f"Training {config.name} on {len(train_set.images)} images: {config.train.epochs} epochs of "
        f"{plan.epoch_steps} steps of {config.train.batch_size} images; learning rate {rate:g}; ATSS up to step "
        f"{warm}, task-aligned from there; {jax.device_count()} {jax.devices()[0].platform} device(s), "
        f"{config.train.precision}; {padding}."
    )
    if config.optimizer.warmup_steps > plan.total_steps // 3:
        log.say(
            f"Note: the learning rate warms up for {config.optimizer.warmup_steps} of {plan.total_steps} steps; "
            "for a short run set optimizer.warmup_steps lower."
        )
    if step == 0 and config.backbone.frozen_stages >= 0:
        log.say(
            f"Note: backbone.frozen_stages={config.backbone.frozen_stages} freezes layers that start from random "
            "weights; to train from scratch set backbone.frozen_stages=-1 and backbone.norm=group."
        )
    if step < plan.total_steps:
        log.say("The first step compiles the program and takes longer.")


def _log_window(config: Config, plan: Plan, step: int, rows: list[Row], pace: Pace, log: RunLog) -> None:
    """Log the means of the steps since the last line, then forget them. Rates are this process's own, not resumable."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    speed, waiting = pace.read()
    rows.clear()
    epoch = step / plan.epoch_steps
    log.metrics(step, {"epoch": epoch, **means, "speed": {"images_per_s": speed, "waiting_for_data": waiting}})
    left = format_eta(plan.total_steps - step, config.train.batch_size / max(speed, 1e-9))
    log.progress(
        step,
        plan.total_steps,
        {
            "epoch": f"{epoch:.1f}",
            "loss": means["loss"],
            "cls": means["loss_cls"],
            "box": means["loss_box"],
            "phase": "task-aligned" if means["task_aligned"] > 0.5 else "ATSS",
            "lr": means["learning_rate"],
            "images/s": f"{speed:.1f}",
            "waiting": f"{waiting:.0%}",
            "left": left,
            "memory": " ".join(f"{name} {value:.1f} GB" for name, value in memory_report().items()),
        },
    )


def _keep_evidence(folder: Path, step: int, row: Row, batch: Batch) -> str:
    """Save the batch and the numbers of a non-finite step; returns what to tell the user."""
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    evidence = folder / f"non_finite_step_{step}"
    evidence.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(evidence / "batch.npz", **batch._asdict())
    (evidence / "metrics.json").write_text(json.dumps({name: str(value) for name, value in row.items()}, indent=1))
    return (
        f"Step {step} gave a non-finite {', '.join(bad)}. The weights before it are saved in "
        f"{folder}/checkpoints/{step}, its batch and numbers in {evidence}. Usual causes: a learning rate too high "
        "(optimizer.learning_rate), no clipping (optimizer.clip_norm=10), or broken boxes in the annotations."
    )
