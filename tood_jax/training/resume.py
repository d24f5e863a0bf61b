"""Start a run at its newest complete checkpoint, or at the beginning."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tood_jax.checkpoint.checksums import crc32_all
from tood_jax.checkpoint.reader import OtherLeavesError
from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.config import Config, ConfigError, from_dict, to_dict
from tood_jax.distributed.sharding import put_whole
from tood_jax.models.detector import Detector
from tood_jax.run_log.log import RunLog
from tood_jax.training.consistency import check_same_everywhere
from tood_jax.training.state import TrainState, init_state, with_weights
from tood_jax.training.train_step import train_state_shardings
from tood_jax.types import Tree
from tood_jax.untrusted.printable import printable

_WITH_ARRAYS = ("backbone", "neck", "head", "optimizer")  # groups of the config that decide which arrays there are
StartFrom = Callable[[Tree, Tree], tuple[Tree, Tree]]  # random (params, batch_stats) to those that a run begins with


def restore_or_init(
    config: Config,
    model: Detector,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    store: CheckpointStore,
    log: RunLog,
    start_from: StartFrom | None,
    check: Callable[[dict[str, Any]], None],
) -> tuple[TrainState, int, dict[str, Any]]:
    """Return (state, step, about) of the newest complete checkpoint, or of the beginning.

    Args:
        start_from: --init_from, used where there is no checkpoint.
        check: called with a checkpoint's `about` before its arrays are read; it raises CheckpointError if this run
            cannot continue from it.
    """
    keep_ema = config.optimizer.ema_decay is not None

    def init() -> TrainState:
        return init_state(model, optimizer, seed=config.train.seed, keep_ema=keep_ema)

    shardings = train_state_shardings(model, config, optimizer, mesh)
    if store.latest_step() is None:
        log.resume_from(0)
        state = init()
        if start_from is not None:
            params, batch_stats = start_from(state.params, state.batch_stats)
            check_same_everywhere({"--init_from": _checksum(params, batch_stats)})
            state = with_weights(state, params, batch_stats, optimizer)
        return put_whole(state, shardings), 0, {}
    if start_from is not None:
        log.info("--init_from is not used: this run goes on from its own checkpoint.")
    shapes = jax.eval_shape(init)
    abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)
    found: dict[str, Any] = {}

    def keep_and_check(about: dict[str, Any]) -> None:
        found.update(about)
        check(about)

    try:
        state, about = store.restore(abstract, check=keep_and_check)
    except OtherLeavesError as error:
        raise _explained(error, found, config, store.folder) from None
    step = int(about["step"])
    log.resume_from(step, evaluated=about.get("metrics") is not None)
    log.info(f"Going on from step {step} of {store.folder}.")
    changed = changed_fields(in_current_form(about["config"]), to_dict(config))
    if changed:
        log.info(
            "The config differs from that of the checkpoint in " + ", ".join(changed) + ": the present one is used."
        )
    return state, step, about


def _explained(error: OtherLeavesError, about: dict[str, Any], config: Config, folder: Path) -> OtherLeavesError:
    """Return an error that names the changed fields of the config in place of the list of arrays."""
    stored, own = in_current_form(about.get("config") or {}), to_dict(config)
    groups = [{group: tree.get(group, {}) for group in _WITH_ARRAYS} for tree in (stored, own)]
    changed = [
        f"{name} was {printable(_field(stored, name), 60)} and is {printable(_field(own, name), 60)}"
        for name in changed_fields(groups[0], groups[1])
    ]
    if not changed:
        return error
    return OtherLeavesError(
        f"the run in {printable(folder.parent)} can't go on with this config ({', '.join(changed)}): restore these "
        "fields, or name another --train.workdir; --init_from takes the weights of the former run."
    )


def _field(config: dict[str, Any], name: str) -> Any:
    group, _, field = name.partition(".")
    return (config.get(group) or {}).get(field)


def _checksum(*trees: Tree) -> str:
    sums = crc32_all(np.asarray(leaf) for leaf in jax.tree.leaves(trees))
    return f"weights of checksum {zlib.crc32(json.dumps(sums).encode()):08x}"


def in_current_form(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored config with the current names of its fields, and with defaults for fields that it lacks."""
    try:
        return to_dict(from_dict(config))
    except ConfigError:  # of another version: compared as it is
        return config


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of the fields in which two config dictionaries differ."""
    names = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += changed_fields(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b):
            names.append(f"{prefix}{key}")
    return names
