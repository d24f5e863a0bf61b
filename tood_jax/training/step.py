"""One step of training, a pure function to be jitted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from tood_jax.config import Config
from tood_jax.detectors.tood import Losses, Tood, normalize_images, tood_losses
from tood_jax.training.sharding import over_batch, replicated
from tood_jax.training.state import TrainState, Tree
from tood_jax.types import Batch

Metrics = dict[str, jax.Array]


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Number of steps assigned by ATSS before the task-aligned phase."""
    return round(config.learning.warmup_epochs * steps_per_epoch)


def _batch_losses(model: Tood, config: Config, params: Tree, batch_stats: Tree, batch: Batch, aligned):
    """Losses of a batch and the batch statistics after it."""
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = {"params": params, "batch_stats": batch_stats}
    pred, updated = model.apply(variables, images, True, mutable=["batch_stats"])
    losses = tood_losses(pred, batch, aligned, learning=config.learning, anchor_scale=config.head.anchor_scale)
    return losses.total, (losses, updated.get("batch_stats", batch_stats))


def _gradients(model: Tood, config: Config, state: TrainState, batch: Batch, aligned):
    """(gradients, losses, batch_stats), worked off in `accumulate_steps` parts and averaged over them."""
    grad = jax.grad(
        lambda params, stats, part: _batch_losses(model, config, params, stats, part, aligned), has_aux=True
    )
    parts = config.train.accumulate_steps
    if parts == 1:
        gradients, (losses, stats) = grad(state.params, state.batch_stats, batch)
        return gradients, losses, stats
    # Part k takes rows k, k + parts, …, so that every part stays spread over all devices.
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(carry, part):
        gradients, losses, stats = carry
        new_gradients, (new_losses, stats) = grad(state.params, stats, part)
        return (
            *jax.tree.map(lambda a, b: a + b / parts, (gradients, losses), (new_gradients, new_losses)),
            stats,
        ), None

    zeros = jax.tree.map(jnp.zeros_like, state.params), Losses(jnp.zeros(5), jnp.zeros(5))
    (gradients, losses, stats), _ = lax.scan(add, (*zeros, state.batch_stats), split)
    return gradients, losses, stats


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Tood,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: int,
) -> tuple[TrainState, Metrics]:
    """One update. A step whose loss or gradient is not finite changes nothing, not even the step count.

    Returns:
        The new state, and scalars: `loss`, its parts `loss_cls`, `loss_box` and both a level (`loss_cls_P3`, …),
        `grad_norm`, `learning_rate`, `task_aligned` (0 in the ATSS warm-up, 1 after), `finite` (1, or 0 if refused).
    """
    aligned = state.step >= warmup_steps(config, steps_per_epoch)
    gradients, losses, batch_stats = _gradients(model, config, state, batch, aligned)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if config.optimizer.ema_decay is not None:
        # The average follows faster at first, so that it forgets the random start.
        decay = jnp.minimum(config.optimizer.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), ema, params)
    updated = TrainState(state.step + 1, params, batch_stats, opt_state, ema)

    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
    metrics = {
        "loss": losses.total,
        "loss_cls": losses.cls.sum(),
        "loss_box": losses.box.sum(),
        "grad_norm": grad_norm,
        "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        "task_aligned": aligned.astype(jnp.float32),
        "finite": finite.astype(jnp.float32),
    }
    for i in range(5):
        metrics |= {f"loss_cls_P{i + 3}": losses.cls[i], f"loss_box_P{i + 3}": losses.box[i]}
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state), metrics


def compile_train_step(
    model: Tood,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step`, jitted over the mesh; the state's buffers are donated."""

    def step(state, batch):
        return train_step(
            state,
            batch,
            model=model,
            config=config,
            optimizer=optimizer,
            schedule=schedule,
            steps_per_epoch=steps_per_epoch,
        )

    everywhere = replicated(mesh)
    return jax.jit(step, in_shardings=(everywhere, over_batch(mesh)), out_shardings=everywhere, donate_argnums=0)
