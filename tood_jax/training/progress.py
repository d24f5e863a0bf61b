"""Log the plan of a run at its start, and its progress every `log_every_steps` steps."""

import jax
import numpy as np

from tood_jax.config import Config
from tood_jax.criterion.losses import loss_parts
from tood_jax.data.dataset import Dataset
from tood_jax.data.loader import describe_batches
from tood_jax.data.sampler import images_per_epoch
from tood_jax.run_log.goodput import STEPS, Ledger, Stopwatch
from tood_jax.run_log.log import RunLog
from tood_jax.run_log.rates import format_eta, images_per_second, memory_report
from tood_jax.training.optimizer import scaled_learning_rate
from tood_jax.training.plan import Plan
from tood_jax.training.stepper import Row
from tood_jax.training.train_step import warmup_steps


class Pace:
    """Rates since the last line of the log, without the time of compiling, evaluating and saving."""

    def __init__(self, watch: Stopwatch):
        self._watch = watch
        self._images = 0
        self._before = watch.spent()

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def seconds(self) -> float:
        """Return the time of all steps of this start, with that of waiting for data."""
        spent = self._watch.spent()
        return spent[STEPS] + spent.get("waiting", 0.0)

    def read(self) -> tuple[float, float]:
        """Return (images/s, share 0–1 of waiting for data) since the last call."""
        now = self._watch.spent()
        steps, waited = (now.get(kind, 0.0) - self._before.get(kind, 0.0) for kind in (STEPS, "waiting"))
        images, self._images, self._before = self._images, 0, now
        return images_per_second(images, steps + waited), waited / max(steps + waited, 1e-9)


def log_plan(config: Config, plan: Plan, step: int, train_set: Dataset, log: RunLog, *, random_backbone: bool) -> None:
    """Log what the run trains on and how, with notes on settings that are unusual for its length or start."""
    rate = scaled_learning_rate(config.optimizer, config.train.batch_size)
    assigner = config.assigner.kind.replace("_", "-")
    if assigner == "task-aligned":
        assigner = f"ATSS up to step {warmup_steps(config, plan.epoch_steps)}, task-aligned from there"
    padding = describe_batches(train_set, config.data, config.train.batch_size, config.train.seed)
    images = f"{len(train_set.images)} images"
    if config.data.repeat_threshold:
        images += f" ({images_per_epoch(train_set, config.data)} per epoch, as those with rare classes are repeated)"
    log.info(
        f"Training {config.name} on {images}: {config.train.epochs} epochs of "
        f"{plan.epoch_steps} steps of {config.train.batch_size} images; learning rate {rate:g}; assigned by "
        f"{assigner}; {jax.device_count()} {jax.devices()[0].platform} device(s), {config.train.precision}; {padding}."
    )
    if config.optimizer.warmup_steps > plan.total_steps // 3:
        log.info(
            f"Note: the learning rate warms up for {config.optimizer.warmup_steps} of {plan.total_steps} steps; "
            "for a short run set optimizer.warmup_steps lower."
        )
    if random_backbone and config.backbone.frozen_stages >= 0:
        log.info(
            f"Note: backbone.frozen_stages={config.backbone.frozen_stages} freezes layers that start from random "
            "weights: load a backbone with --init_from FILE (docs/weights.md); to train from scratch set "
            "backbone.frozen_stages=-1 and backbone.norm=group."
        )
    if step < plan.total_steps:
        log.info("The first step compiles the program and takes longer.")


def log_window(config: Config, plan: Plan, step: int, rows: list[Row], pace: Pace, ledger: Ledger, log: RunLog) -> None:
    """Log the means of the steps since the last line, and clear `rows`. Rates are this process's own, not resumed."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    speed, waiting = pace.read()
    rows.clear()
    epoch = step / plan.epoch_steps
    rates = {"images_per_s": speed, "waiting_for_data": waiting, "goodput": ledger.shares()[STEPS]}
    log.metrics(step, {"epoch": epoch, **means, "speed": rates})
    remaining = format_eta(plan.total_steps - step, config.train.batch_size / max(speed, 1e-9))
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
            "left": remaining,
            "memory": " ".join(f"{name} {value:.1f} GB" for name, value in memory_report().items()),
        },
    )


def _phase(config: Config, means: Row) -> dict[str, str]:
    """Return the phase of a run that has two, and the share of objects that were rescued, if any."""
    if config.assigner.kind != "task_aligned":
        return {}
    share = means.get("rescued_objects", 0) / max(means.get("objects", 1), 1)  # older runs do not have them
    return {
        "phase": "task-aligned" if means["task_aligned"] > 0.5 else "ATSS",
        **({"rescued objects": f"{share:.1%}"} if share else {}),
    }
