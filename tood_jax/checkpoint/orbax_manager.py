"""Orbax's checkpoint manager, set up for our two items: the state as a tree of arrays, and about.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tood_jax.checkpoint.reader import ABOUT, ABOUT_FILE, STATE, pick_best
from tood_jax.distributed.fail_fast_barrier import FailFastBarrier


def make_manager(
    folder: Path, keep_latest: int, value_of_steps: Mapping[int, float | None], barrier: FailFastBarrier | None
) -> ocp.CheckpointManager:
    """Return a manager that keeps the newest checkpoints and the best one.

    Args:
        keep_latest: number of newest checkpoints to keep.
        value_of_steps: read at every save.
        barrier: where many processes wait for each other; None in a run of one process.
    """
    newest = ocp.checkpoint_managers.LatestN(keep_latest)
    state = ocp.PyTreeCheckpointHandler(multiprocessing_options=_all_processes())
    about = ocp.JsonCheckpointHandler(filename=ABOUT_FILE, multiprocessing_options=_all_processes())
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(STATE, ocp.args.PyTreeSave, barrier.watch(state) if barrier else state)
    handlers.add(ABOUT, ocp.args.JsonSave, barrier.watch(about) if barrier else about)
    return ocp.CheckpointManager(
        folder,
        handler_registry=handlers,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, _Best(value_of_steps)]),
            lightweight_initialize=True,  # a damaged file of an old step must not stop the manager from starting
            create=False,
            async_options=ocp.AsyncOptions(barrier_sync_fn=barrier.wait) if barrier else None,
            multiprocessing_options=_all_processes(),
        ),
    )


def save_args(state: Any, about: dict[str, Any]) -> ocp.args.Composite:
    """Return the arguments of the manager's `save`."""
    return ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state), ABOUT: ocp.args.JsonSave(about)})


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the best step; Orbax's BestN needs metric files, and one damaged file stops the manager."""

    def __init__(self, value_of_steps: Mapping[int, float | None]):
        self._values = value_of_steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        best = pick_best({info.step: self._values.get(info.step) for info in checkpoints})
        return [info.step == best for info in checkpoints]


def _all_processes() -> ocp.options.MultiprocessingOptions:
    """Name all processes: then they wait for each other by the coordinator, not by the devices, which run steps."""
    processes = set(range(jax.process_count())) if jax.process_count() > 1 else None
    return ocp.options.MultiprocessingOptions(active_processes=processes)
