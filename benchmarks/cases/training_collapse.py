"""Trace how a training run collapses: its targets and predicted boxes, step by step.

    python -m benchmarks.cases.training_collapse --config configs/bccd.py --data.train.images=… \
        --data.train.annotations=… --assigner.rescue_iou=0 --steps 500 --every 10

trains as `train.py` does (same order, weights and program) without saving or evaluating, and every --every steps
evaluates the network before the update: Σ t̂ per object, the largest IoU of a prediction with its object (over all
locations, and over those inside the object, which alone may become positives), the levels of the positives, and the
range of the raw box outputs. Loss and gradient norm are means over the steps since the last row, `peak` is the largest
norm.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.harness.options import Options, read_options_and_config
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from benchmarks.harness.training_step import build_training_step
from tood_jax.assigners.base import MIN_INSIDE_DISTANCE
from tood_jax.config import Config
from tood_jax.criterion.assign import batch_locations
from tood_jax.criterion.losses import losses_and_targets
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.loader import train_batches
from tood_jax.data.sampler import images_per_epoch
from tood_jax.distributed.sharding import make_mesh, put_batch, put_whole
from tood_jax.geometry.boxes import inside_distance, pairwise_iou
from tood_jax.models.build import build_model
from tood_jax.models.detector import Detector, normalize_images
from tood_jax.training.plan import make_plan
from tood_jax.training.state import init_state
from tood_jax.training.train_step import train_state_shardings, warmup_steps
from tood_jax.types import Batch, Tree

NAME = "training_collapse"


@dataclass(frozen=True)
class Args(Options):
    """Options of the trace; --repeats and --seed have no effect (the seed of the run is --train.seed)."""

    steps: int = 500
    """Number of steps to train, at most those of the config."""
    every: int = 10
    """Number of steps between two rows."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Train, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Trace the targets of a training run.")
    report = begin_report(NAME, argv, args, config)
    rows = trace(config, args.steps, args.every)
    print_table(
        "before the update",
        ["step", "phase", "loss", "norm", "peak", "Σt̂/object", "best IoU", "inside", "P3–P7", "raw", "rescued"],
        [
            [
                row["step"],
                "TAL" if row["task_aligned"] else "ATSS",
                f"{row['loss']:.3g}",
                f"{row['grad_norm']:.3g}",
                f"{row['peak']:.3g}",
                f"{row['target_sum']:.2g}",
                f"{row['best_iou']:.2f}",
                f"{row['best_iou_inside']:.2f}",
                " ".join(f"{x:.0f}" for x in row["positives"]),
                f"{row['raw_min']:.1f} … {row['raw_max']:.1f}",
                f"{row['rescued']:.0f} of {row['objects']:.0f}",
            ]
            for row in rows
        ],
    )
    return finish_report(report, args, results=rows)


def trace(config: Config, steps: int, every: int) -> list[dict[str, Any]]:
    """Train from random weights; return a row for every `every` steps."""
    train_set, mesh = load_dataset(config.data.train), make_mesh(None, config.parallel.space)
    plan = make_plan(config, images_per_epoch(train_set, config.data))
    model = build_model(config, len(train_set.classes))
    optimizer, step_fn = build_training_step(config, model, plan.epoch_steps, mesh)
    state = init_state(model, optimizer, seed=config.train.seed, keep_ema=config.optimizer.ema_decay is not None)
    state = put_whole(state, train_state_shardings(model, config, optimizer, mesh))
    observe = jax.jit(partial(_observe, model, config))
    num_steps = min(steps, plan.total_steps)
    batches = train_batches(
        train_set,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=0,
        num_steps=num_steps,
        epochs=config.train.epochs,
    )
    rows: list[dict[str, Any]] = []
    metrics_since_row: list[Any] = []
    for step, host_batch in zip(range(num_steps), batches, strict=False):
        batch = put_batch(host_batch, mesh)
        in_tal_phase = step >= warmup_steps(config, plan.epoch_steps)
        has_row = step % every == 0
        # Before the step, which takes over the buffers of the state.
        observed = jax.device_get(observe(state.params, state.batch_stats, batch, in_tal_phase)) if has_row else {}
        state, metrics = step_fn(state, batch)
        metrics_since_row.append(metrics)
        if has_row:
            found = jax.device_get(metrics_since_row)
            norms = [metrics["grad_norm"] for metrics in found]
            rows.append(
                {name: np.asarray(value).tolist() for name, value in observed.items()}
                | {
                    "step": step,
                    "task_aligned": bool(in_tal_phase),
                    "loss": float(np.mean([metrics["loss"] for metrics in found])),
                    "grad_norm": float(np.mean(norms)),
                    "peak": float(np.max(norms)),
                }
            )
            metrics_since_row.clear()
    return rows


def _observe(
    model: Detector, config: Config, params: Tree, batch_stats: Tree, batch: Batch, in_tal_phase: Any
) -> dict[str, Array]:
    """Return the targets of a batch, and how well its predicted boxes fit its objects."""
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = {"params": params, "batch_stats": batch_stats}
    pred, _ = model.apply(variables, images, True, batch.sizes, mutable=["batch_stats"])
    _, summary = losses_and_targets(pred, batch, in_tal_phase, config)
    locations = batch_locations(batch, config)
    iou = jax.vmap(pairwise_iou)(batch.gt_boxes, pred.boxes * locations.strides)  # [B, M, N]
    iou = jnp.where(locations.valid[:, None] & batch.gt_mask[..., None], iou, 0)
    inside = inside_distance(locations.points, batch.gt_boxes[:, :, None]) > MIN_INSIDE_DISTANCE
    objects = jnp.maximum(summary.objects, 1)
    box_logits = jnp.where(locations.valid[..., None], pred.box_logits, 0)
    return {
        "objects": summary.objects,
        "positives": summary.positives,
        "target_sum": summary.target_sum / objects,
        "positive_iou": summary.iou_sum / jnp.maximum(summary.positives.sum(), 1),
        "rescued": summary.rescued,
        "best_iou": iou.max(axis=-1).sum() / objects,
        "best_iou_inside": jnp.where(inside, iou, 0).max(axis=-1).sum() / objects,
        "raw_min": box_logits.min(),
        "raw_max": box_logits.max(),
    }


if __name__ == "__main__":
    main()
