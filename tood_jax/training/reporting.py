"""What the loop tells of itself: the plan at its start, and a line every so many steps."""

from collections import Counter

import jax
import numpy as np

from tood_jax.config import Config
from tood_jax.data.coco import CocoSet
from tood_jax.data.pipeline import DataCounts, describe_batches
from tood_jax.detectors.losses import loss_parts
from tood_jax.training.goodput import STEPS, Ledger, Stopwatch
from tood_jax.training.messages import from_all
from tood_jax.training.optimizer import scaled_learning_rate
from tood_jax.training.plan import Plan
from tood_jax.training.records import RunLog, format_eta, images_per_second, memory_report
from tood_jax.training.step import warmup_steps
from tood_jax.training.stepper import Row


class Pace:
    """Rates since the last line of the log; compiling, evaluating and saving don't count."""

    def __init__(self, watch: Stopwatch):
        self._watch = watch
        self._images = 0
        self._before = watch.spent()

    def count(self, images: int) -> None:
        """That many images were trained on."""
        self._images += images

    def read(self) -> tuple[float, float]:
        """(images/s, share 0–1 of waiting for data) since the last reading."""
        now = self._watch.spent()
        steps, waited = (now.get(kind, 0.0) - self._before.get(kind, 0.0) for kind in (STEPS, "waiting"))
        images, self._images, self._before = self._images, 0, now
        return images_per_second(images, steps + waited), waited / max(steps + waited, 1e-9)


def announce(config: Config, plan: Plan, step: int, train_set: CocoSet, log: RunLog, *, random_backbone: bool) -> None:
    rate = scaled_learning_rate(config.optimizer, config.train.batch_size)
    assigner = config.learning.assigner.replace("_", "-")
    if assigner == "task-aligned":
        assigner = f"ATSS up to step {warmup_steps(config, plan.epoch_steps)}, task-aligned from there"
    padding = describe_batches(train_set, config.data, config.train.batch_size, config.train.seed)
    log.say(
        f"Training {config.name} on {len(train_set.images)} images: {config.train.epochs} epochs of "
        f"{plan.epoch_steps} steps of {config.train.batch_size} images; learning rate {rate:g}; assigned by "
        f"{assigner}; {jax.device_count()} {jax.devices()[0].platform} device(s), {config.train.precision}; {padding}."
    )
    if config.optimizer.warmup_steps > plan.total_steps // 3:
        log.say(
            f"Note: the learning rate warms up for {config.optimizer.warmup_steps} of {plan.total_steps} steps; "
            "for a short run set optimizer.warmup_steps lower."
        )
    if random_backbone and config.backbone.frozen_stages >= 0:
        log.say(
            f"Note: backbone.frozen_stages={config.backbone.frozen_stages} freezes layers that start from random "
            "weights: load a backbone with --init_from FILE (docs/weights.md); to train from scratch set "
            "backbone.frozen_stages=-1 and backbone.norm=group."
        )
    if step < plan.total_steps:
        log.say("The first step compiles the program and takes longer.")


def log_window(config: Config, plan: Plan, step: int, rows: list[Row], pace: Pace, ledger: Ledger, log: RunLog) -> None:
    """Log the means of the steps since the last line, then forget them. Rates are this process's own, not resumable."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    speed, waiting = pace.read()
    rows.clear()
    epoch = step / plan.epoch_steps
    rates = {"images_per_s": speed, "waiting_for_data": waiting, "goodput": ledger.shares()[STEPS]}
    log.metrics(step, {"epoch": epoch, **means, "speed": rates})
    left = format_eta(plan.total_steps - step, config.train.batch_size / max(speed, 1e-9))
    log.progress(
        step,
        plan.total_steps,
        {
            "epoch": f"{epoch:.1f}",
            "loss": means["loss"],
            **{part: means[f"loss_{part}"] for part in loss_parts(config)},
            **_phase(config, means),
            "lr": means["learning_rate"],
            "images/s": f"{speed:.1f}",
            "waiting": f"{waiting:.0%}",
            "left": left,
            "memory": " ".join(f"{name} {value:.1f} GB" for name, value in memory_report().items()),
        },
    )


def _phase(config: Config, means: Row) -> dict[str, str]:
    """The phase of a run that has two."""
    if config.learning.assigner != "task_aligned":
        return {}
    return {"phase": "task-aligned" if means["task_aligned"] > 0.5 else "ATSS"}


def counts_of_all(own: DataCounts) -> DataCounts:
    """What all processes had to leave out of the data; to be called by all of them."""
    total = DataCounts()
    for objects, images, broken in from_all((own.truncated_objects, own.truncated_images, dict(own.broken))):
        total.add(DataCounts(objects, images, Counter(broken)))
    return total
