"""Where a run begins: at its newest whole checkpoint, or at the beginning."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tood_jax.config import Config, to_dict
from tood_jax.detectors.detector import Detector
from tood_jax.training.checkpoints import CheckpointStore
from tood_jax.training.records import RunLog
from tood_jax.training.sharding import put_whole
from tood_jax.training.state import TrainState, Tree, init_state
from tood_jax.training.step import train_state_shardings

StartFrom = Callable[[Tree, Tree], tuple[Tree, Tree]]  # fresh (params, batch_stats) to those a run begins with


def restore_or_init(
    config: Config,
    model: Detector,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    store: CheckpointStore,
    log: RunLog,
    start_from: StartFrom | None,
) -> tuple[TrainState, int, dict[str, Any]]:
    """(state, step, about): the newest whole checkpoint, or the beginning."""
    keep_ema = config.optimizer.ema_decay is not None

    def fresh() -> TrainState:
        return init_state(model, optimizer, seed=config.train.seed, keep_ema=keep_ema)

    shardings = train_state_shardings(model, config, optimizer, mesh)
    if store.latest_step() is None:
        log.resume_from(0)
        state = fresh()
        if start_from is not None:
            params, batch_stats = start_from(state.params, state.batch_stats)
            ema = jax.tree.map(np.copy, params) if keep_ema else {}
            state = TrainState(state.step, params, batch_stats, optimizer.init(params), ema)
        return put_whole(state, shardings), 0, {}
    if start_from is not None:
        log.say("--init_from is not used: this run goes on from its own checkpoint.")
    shapes = jax.eval_shape(fresh)
    abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)
    state, about = store.restore(abstract)
    step = int(about["step"])
    log.resume_from(step, evaluated=about.get("metrics") is not None)
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
