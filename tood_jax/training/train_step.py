"""One training step, a pure function to be jitted."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.config import Config
from tood_jax.criterion.losses import Divisors, Losses, TargetSummary, loss_parts, losses_and_targets
from tood_jax.distributed.compiler_options import compiler_options
from tood_jax.distributed.sharding import batch_shardings, over_batch, replicated, state_shardings
from tood_jax.models.detector import Detector, normalize_images
from tood_jax.training.optimizer import stop_frozen_gradients
from tood_jax.training.state import TrainState, state_shapes
from tood_jax.types import Batch, Predictions, Tree

Metrics = dict[str, jax.Array]


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of steps assigned by ATSS before the TAL phase; 0 with other assigners."""
    if config.assigner.kind != "task_aligned":
        return 0
    return round(config.assigner.warmup_epochs * steps_per_epoch)


def predict_in_training(
    model: Detector, config: Config, mesh: Mesh, params: Tree, batch_stats: Tree, batch: Batch
) -> tuple[Predictions, Tree]:
    """Return the predictions for a training batch, where norms may take its own statistics, and the new statistics."""
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = {"params": params, "batch_stats": batch_stats}
    with use_abstract_mesh(mesh.abstract_mesh):
        pred, updated = model.apply(variables, images, True, batch.sizes, mutable=["batch_stats"])
        pred = lax.with_sharding_constraint(pred, over_batch(mesh))  # assignment looks at whole images
    return pred, updated.get("batch_stats", batch_stats)


def batch_losses(
    model: Detector,
    config: Config,
    mesh: Mesh,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
    in_tal_phase,
    divisors: Divisors | None = None,
):
    """Return (total loss, (losses by part and level, summary of the targets, new batch statistics)) of a batch.

    With `divisors`, the sums over a step, the batch is one part of that step.
    """
    pred, updated = predict_in_training(model, config, mesh, params, batch_stats, batch)
    with use_abstract_mesh(mesh.abstract_mesh):
        losses, summary = losses_and_targets(pred, batch, in_tal_phase, config, divisors)
    return losses.total, (losses, summary, updated)


def step_gradients(model: Detector, config: Config, mesh: Mesh, state: TrainState, batch: Batch, in_tal_phase):
    """Return (gradients, losses, summary of the targets, batch_stats) of a step, in `accumulate_steps` parts.

    The first three are sums over the parts and equal those of the whole batch, but for the statistics of BatchNorm.
    What the losses are divided by is known only after all parts, so with two or more a first pass without gradients
    sums the divisors. It costs a forward pass, a third more operations, and no memory beyond that of one part. Where
    the divisors do not depend on predictions (RetinaNet, FCOS, ATSS, FoveaBox), XLA drops the network from it.
    """

    def part_losses(params, batch_stats, part, divisors=None):
        params = stop_frozen_gradients(params, config)
        return batch_losses(model, config, mesh, params, batch_stats, part, in_tal_phase, divisors)

    grad = jax.grad(part_losses, has_aux=True)
    parts = config.train.accumulate_steps
    if parts == 1:
        gradients, (losses, summary, stats) = grad(state.params, state.batch_stats, batch)
        return gradients, losses, summary, stats
    # Part k takes rows k, k + parts, …, so that every part stays spread over all devices.
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def part_divisors(part) -> Divisors:
        _, (_, summary, _) = part_losses(state.params, state.batch_stats, part)
        return summary.divisors

    divisors = jax.tree.map(lambda x: x.sum(axis=0), lax.map(part_divisors, split))

    def add(carry, part):
        sums, stats = carry
        gradients, (losses, summary, stats) = grad(state.params, stats, part, divisors)
        return (jax.tree.map(jnp.add, sums, (gradients, losses, summary)), stats), None

    zero = jnp.zeros(())
    begin = (
        jax.tree.map(jnp.zeros_like, state.params),
        Losses(*[jnp.zeros(5)] * len(Losses._fields)),
        TargetSummary(
            objects=zero,
            positives=jnp.zeros(5),
            target_sum=zero,
            iou_sum=zero,
            rescued=zero,
            divisors=jax.tree.map(jnp.zeros_like, divisors),
        ),
    )
    (sums, stats), _ = lax.scan(add, (begin, state.batch_stats), split)
    return *sums, stats


def train_step(
    state: TrainState,
    batch: Batch,
    previous_finite: jax.Array | None = None,
    *,
    model: Detector,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update. A step whose loss or gradient is not finite changes nothing.

    Args:
        previous_finite: [] `finite` of the step before, which the host may not have read yet: with 0 this step changes
            nothing either.

    Returns:
        The new state, and scalars: `loss`, its parts (`loss_cls`, `loss_box`, …) and each per level (`loss_cls_P3`, …),
        `grad_norm`, `learning_rate`, `finite` (1, or 0 if refused), a summary of the targets (`objects`, `positives`
        and each per level, `target_sum` = Σ t̂, `positive_iou` = mean IoU of the positives' boxes), and where the
        assigner is task_aligned `task_aligned` (0 in the ATSS warm-up, 1 after) and `rescued_objects`.
    """
    in_tal_phase = state.step >= warmup_steps(config, steps_per_epoch)
    gradients, losses, summary, batch_stats = step_gradients(model, config, mesh, state, batch, in_tal_phase)
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
    if previous_finite is not None:
        finite &= previous_finite > 0
    learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
    updated = updated_state(
        state, gradients, batch_stats, finite, learning_rate, optimizer, ema_decay=config.optimizer.ema_decay
    )

    metrics = {
        "loss": losses.total,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "finite": finite.astype(jnp.float32),
        "objects": summary.objects,
        "positives": summary.positives.sum(),
        **{f"positives_P{i + 3}": summary.positives[i] for i in range(5)},
        "target_sum": summary.target_sum,
        "positive_iou": summary.iou_sum / jnp.maximum(summary.positives.sum(), 1),
    }
    if config.assigner.kind == "task_aligned":
        metrics["task_aligned"] = in_tal_phase.astype(jnp.float32)
        metrics["rescued_objects"] = summary.rescued
    for part in loss_parts(config):
        levels = getattr(losses, part)
        metrics[f"loss_{part}"] = levels.sum()
        metrics |= {f"loss_{part}_P{i + 3}": levels[i] for i in range(5)}
    return updated, metrics


def updated_state(
    state: TrainState,
    gradients: Tree,
    batch_stats: Tree,
    accepted: jax.Array,
    learning_rate: jax.typing.ArrayLike,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None,
) -> TrainState:
    """Return the state after an update by `gradients`, or `state` itself if it is not accepted ([] bool)."""

    def accept(new: Tree, old: Tree) -> Tree:
        return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)

    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, learning_rate=learning_rate, accepted=accepted
    )
    params = accept(optax.apply_updates(state.params, updates), state.params)
    ema = state.ema
    if ema_decay is not None:
        # The average follows faster at first, so that it forgets the random start.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = accept(jax.tree.map(lambda old, new: old * decay + new * (1 - decay), ema, params), ema)
    return TrainState(state.step + accepted, params, accept(batch_stats, state.batch_stats), opt_state, ema)


def compile_train_step(
    model: Detector,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    mesh: Mesh,
    chained: bool = False,
) -> Any:
    """Return `train_step` jitted over the mesh: (state, batch) to (state, metrics). Buffers of the state are donated.

    With `chained` it also takes `previous_finite`.
    """

    def step(state, batch, *previous_finite):
        return train_step(
            state,
            batch,
            *previous_finite,
            model=model,
            config=config,
            optimizer=optimizer,
            schedule=schedule,
            steps_per_epoch=steps_per_epoch,
            mesh=mesh,
        )

    state = train_state_shardings(model, config, optimizer, mesh)
    return jax.jit(
        step,
        in_shardings=(state, batch_shardings(mesh), *[replicated(mesh)] * chained),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(config, mesh),
    )


def train_state_shardings(
    model: Detector, config: Config, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the sharding of each array of the state, by `config.parallel`."""
    shapes = state_shapes(model, optimizer, keep_ema=config.optimizer.ema_decay is not None)
    return state_shardings(shapes, mesh, config.parallel.split_state)
