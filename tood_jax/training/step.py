"""One step of training, a pure function to be jitted."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, use_abstract_mesh

from tood_jax.compiling import compiler_options
from tood_jax.config import Config
from tood_jax.detectors.detector import Detector, normalize_images
from tood_jax.detectors.losses import Losses, detection_losses, loss_parts
from tood_jax.training.optimizer import descend
from tood_jax.training.sharding import batch_shardings, over_batch, replicated, state_shardings
from tood_jax.training.state import TrainState, Tree, state_shapes
from tood_jax.types import Batch

Metrics = dict[str, jax.Array]


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Number of steps assigned by ATSS before the task-aligned phase; 0 with other assigners."""
    if config.learning.assigner != "task_aligned":
        return 0
    return round(config.learning.warmup_epochs * steps_per_epoch)


def batch_losses(model: Detector, config: Config, mesh: Mesh, params: Tree, batch_stats: Tree, batch: Batch, aligned):
    """(total loss, (losses by part and level, batch statistics after it)) of a batch."""
    images = normalize_images(batch.images, batch.sizes, config.data.pixel_mean, config.data.pixel_std)
    variables = {"params": params, "batch_stats": batch_stats}
    with use_abstract_mesh(mesh.abstract_mesh):
        pred, updated = model.apply(variables, images, True, mutable=["batch_stats"])
        pred = lax.with_sharding_constraint(pred, over_batch(mesh))  # assignment looks at whole images
        losses = detection_losses(pred, batch, aligned, config)
    return losses.total, (losses, updated.get("batch_stats", batch_stats))


def _gradients(model: Detector, config: Config, mesh: Mesh, state: TrainState, batch: Batch, aligned):
    """(gradients, losses, batch_stats), worked off in `accumulate_steps` parts and averaged over them."""
    grad = jax.grad(
        lambda params, stats, part: batch_losses(model, config, mesh, params, stats, part, aligned), has_aux=True
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

    zeros = jax.tree.map(jnp.zeros_like, state.params), Losses(*[jnp.zeros(5)] * len(Losses._fields))
    (gradients, losses, stats), _ = lax.scan(add, (*zeros, state.batch_stats), split)
    return gradients, losses, stats


def train_step(
    state: TrainState,
    batch: Batch,
    go: jax.Array | None = None,
    *,
    model: Detector,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    steps_per_epoch: int,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    """One update. A step whose loss or gradient is not finite changes nothing, not even the step count.

    Args:
        go: [] `finite` of the step before, where that may not have been seen yet: with 0 this step changes nothing
            either.

    Returns:
        The new state, and scalars: `loss`, its parts (`loss_cls`, `loss_box`, …) and each a level (`loss_cls_P3`, …),
        `grad_norm`, `learning_rate`, `finite` (1, or 0 if refused), and where the assigner is task_aligned
        `task_aligned` (0 in the ATSS warm-up, 1 after).
    """
    aligned = state.step >= warmup_steps(config, steps_per_epoch)
    gradients, losses, batch_stats = _gradients(model, config, mesh, state, batch, aligned)
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
    if go is not None:
        finite &= go > 0
    learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
    updated = updated_state(
        state, gradients, batch_stats, finite, learning_rate, optimizer, ema_decay=config.optimizer.ema_decay
    )

    metrics = {
        "loss": losses.total,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        "finite": finite.astype(jnp.float32),
    }
    if config.learning.assigner == "task_aligned":
        metrics["task_aligned"] = aligned.astype(jnp.float32)
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
    """The state after an update by `gradients`, or `state` itself where it isn't accepted ([] bool)."""

    def accept(new: Tree, old: Tree) -> Tree:
        return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)

    _, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    opt_state = accept(opt_state, state.opt_state)
    params = accept(descend(state.params, opt_state, learning_rate), state.params)
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
    """`train_step`, jitted over the mesh: (state, batch) to (state, metrics); the state's buffers are donated.

    With `chained` it takes `go` too, the `finite` of the step before.
    """

    def step(state, batch, *go):
        return train_step(
            state,
            batch,
            *go,
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
    """Where each array of the state lives, as `config.parallel` says."""
    shapes = state_shapes(model, optimizer, keep_ema=config.optimizer.ema_decay is not None)
    return state_shardings(shapes, mesh, config.parallel.split_state)
