"""Save checkpoints while training goes on, and find the newest complete one again.

A save is asynchronous and atomic: the state is copied to the host before `save` returns (the next step may donate its
buffers), then Orbax writes it in the background under a temporary name and renames it when everything is written.
All processes call these functions alike; `folder` is on a file system that they share. Each process writes its part of
the state; the primary process reads the folder, changes it and broadcasts what it finds.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tood_jax.checkpoint import folder as checkpoint_folder
from tood_jax.checkpoint.disk_errors import describe_disk_error, fail_together, is_disk_error
from tood_jax.checkpoint.orbax_clock import use_monotonic_clock
from tood_jax.checkpoint.orbax_manager import make_manager, save_args
from tood_jax.checkpoint.package_versions import package_versions
from tood_jax.checkpoint.reader import (
    ABOUT,
    ABOUT_FILE,
    Checkpoint,
    CheckpointError,
    DamagedCheckpointError,
    check_same_leaves,
    list_steps,
    named_leaves,
    open_checkpoint,
    pack_about,
    pick_best,
    place_on_devices,
    ranking_value,
    read_about,
    read_leaves,
)
from tood_jax.checkpoint.snapshot import take_snapshot
from tood_jax.distributed.fail_fast_barrier import FailFastBarrier
from tood_jax.distributed.host_sync import broadcast_json, gather_json, run_on_primary
from tood_jax.files import write_atomically

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "DamagedCheckpointError", "open_checkpoint"]

_CLOSE_ATTEMPTS = 4
_PACKAGES = ("tood_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


class CheckpointStore:
    """The checkpoints of one run, in `folder`: the newest `keep_latest` and the best one.

    Errors of the disk (OSError, also in the background) are logged, not raised: training goes on until the next save.

    Args:
        folder: created if missing; on a mounted file system.
        keep_latest: number of newest checkpoints that are kept, at least 1.
        log: called with each message; warnings begin with "warning:".
        best: name of the metric by which a checkpoint is the best.
    """

    def __init__(self, folder: str | Path, keep_latest: int, log: Callable[[str], None] = print, *, best: str = "AP"):
        if "://" in str(folder):
            raise ValueError(f"checkpoints go to a mounted file system, not to {folder}")
        if keep_latest < 1:
            raise ValueError(f"keep_latest must be at least 1, not {keep_latest}")
        self.folder = Path(folder).absolute()
        self._keep_latest = keep_latest
        self._log = log
        self._best = best
        self._in_flight: int | None = None
        use_monotonic_clock()
        run_on_primary(lambda: checkpoint_folder.clean_up(self.folder, self._log))
        self._start_manager()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:  # after an error the other processes may never close theirs
            self.close()

    # ------------------------------------------------------------------ saving

    def save(self, step: int, state: Any, about: dict[str, Any], metrics: dict[str, Any] | None = None) -> bool:
        """Begin to save; return when the former save has ended and the state is copied to the host.

        Of a step saved before with the same state only `about` and the metrics are written again. With another state it
        is replaced, and removed only when the new one is complete. Steps later than `step` (damaged ones that were
        skipped, or those of a course abandoned by restoring an earlier step) move to `set_aside/`.

        Args:
            state: pytree of arrays (no typed keys: use `jax.random.key_data`).
            about: JSON dict. "step", "metrics", "versions" are added; non-finite numbers become strings.
            metrics: metrics[best] ranks the checkpoint; missing or not finite: unranked. Of a step
                saved twice, the former metrics are kept unless new ones are given.

        Returns:
            Whether the save was begun; if not, an error of the disk was logged.
        """
        self.wait()
        stored, leaves = take_snapshot(state)
        known = broadcast_json(lambda: self._read_if_complete(step))
        if metrics is None and known is not None:
            metrics = known[0].get("metrics")
        versions = package_versions(_PACKAGES)
        content = pack_about({"versions": versions, **about, "step": int(step), "metrics": metrics}, leaves)
        self._ranks[step] = ranking_value(content["about"], self._best)
        try:
            if known is not None and known[1] == content["leaves"]:
                run_on_primary(lambda: self._write_about(step, content))
                return True
            self._make_way_for(step)
            self._in_flight = step
            with fail_together():
                self._manager.save(step, args=save_args(stored, content), force=True)
        except Exception as error:
            self._recover(step, error)
            return False
        return True

    def wait(self) -> None:
        """Return when the save under way, if any, has ended."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        try:
            with fail_together():
                self._manager.wait_until_finished()
                if jax.process_index() == 0 and not self._step_folder(step).is_dir():
                    raise OSError(f"{self._step_folder(step)} was not written")
        except Exception as error:
            self._recover(step, error)
            return
        run_on_primary(lambda: checkpoint_folder.remove_replaced(self.folder))

    def close(self) -> None:
        """Wait for the save under way and end the background threads."""
        self.wait()
        run_on_primary(lambda: checkpoint_folder.remove_temporary(self.folder, self._log))
        self._manager.close()

    # ------------------------------------------------------------------ finding and restoring

    def steps(self) -> list[int]:
        """Return the steps of finished checkpoints in rising order, damaged ones included: only reading shows those."""
        return broadcast_json(lambda: list_steps(self.folder))

    def holds(self, step: int, evaluated: bool) -> bool:
        """Return whether the checkpoint of `step` is complete (all is read) and, if `evaluated`, has its metrics."""
        self.wait()

        def is_complete() -> bool:
            try:
                about, leaves = read_about(self._step_folder(step))
                read_leaves(self._step_folder(step), leaves)
            except (DamagedCheckpointError, OSError):
                return False
            return about.get("metrics") is not None or not evaluated

        return broadcast_json(is_complete)

    def latest_step(self) -> int | None:
        """Return the newest finished step, None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Return the best finished step (the later of equals), None if none was evaluated."""
        return pick_best({step: self._ranks.get(step) for step in self.steps()})

    def restore(
        self, abstract_state: Any, step: int | None = None, check: Callable[[dict[str, Any]], None] = lambda about: None
    ) -> tuple[Any, dict[str, Any]]:
        """Return (state, about) of `step`, or of the newest complete checkpoint; damaged ones are logged.

        Args:
            abstract_state: pytree of arrays or jax.ShapeDtypeStruct; the leaves' shardings decide where arrays go.
            check: called with `about` before any array is read or compared; it may raise.

        Raises:
            CheckpointError: there is none, none is complete, or the leaves differ (each is listed).
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}: it has {', '.join(map(str, steps))}")
        expected = named_leaves(abstract_state)
        damages: list[str] = []
        for candidate in [step] if step is not None else reversed(steps):
            about, arrays, damage = self._read(candidate, expected, check)
            if all(gather_json(arrays is not None)) and arrays is not None:
                return place_on_devices(arrays, abstract_state), about
            damages.append(damage)
            self._log(f"warning: skipped a damaged checkpoint: {damage}")
        raise CheckpointError(f"no complete checkpoint in {self.folder}:\n  " + "\n  ".join(damages))

    def _read(
        self, step: int, expected: dict[str, Any], check: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray] | None, str]:
        """Return (about, arrays, "") of a step, or ({}, None, what is damaged)."""
        folder = self._step_folder(step)
        try:
            about, leaves = read_about(folder)
            check(about)
            check_same_leaves(leaves, expected, str(folder))
            return about, read_leaves(folder, leaves), f"{step} is damaged in another process"
        except DamagedCheckpointError as error:
            return {}, None, str(error)

    # ------------------------------------------------------------------ housekeeping

    def _step_folder(self, step: int) -> Path:
        return self.folder / str(step)

    def _write_about(self, step: int, content: dict[str, Any]) -> None:
        write_atomically(self._step_folder(step) / ABOUT / ABOUT_FILE, json.dumps(content).encode())

    def _start_manager(self) -> None:
        self._ranks: dict[int, float | None] = dict(broadcast_json(self._read_ranks))
        self._barrier = FailFastBarrier() if jax.process_count() > 1 else None
        self._manager = make_manager(self.folder, self._keep_latest, self._ranks, self._barrier)

    def _read_if_complete(self, step: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return read_about(self._step_folder(step))
        except DamagedCheckpointError:
            return None

    def _read_ranks(self) -> list[tuple[int, float | None]]:
        abouts = ((step, self._read_if_complete(step)) for step in list_steps(self.folder))
        return [(step, ranking_value(known[0], self._best) if known else None) for step, known in abouts]

    def _make_way_for(self, step: int) -> None:
        """Remove unfinished saves, and move a former checkpoint of this step and later ones out of the way."""
        steps = self.steps()  # before the primary process moves anything, so that all processes see the same
        run_on_primary(lambda: checkpoint_folder.remove_temporary(self.folder, self._log))
        if step in steps:
            self._log(f"checkpoint {step} exists with another state; it is replaced once the new one is complete")
            run_on_primary(lambda: checkpoint_folder.move_to_replaced(self.folder, step))
        later = [other for other in steps if other > step]
        if later:
            names, target = ", ".join(map(str, later)), self.folder / checkpoint_folder.SET_ASIDE
            self._log(f"checkpoints later than the one saved now ({step}) move to {target}: {names}")
            run_on_primary(lambda: checkpoint_folder.set_aside(self.folder, later))
        if later or step in steps:
            self._manager.reload()

    def _recover(self, step: int, error: Exception) -> None:
        """Clean up after a failed save; log an error of the disk, and raise any other."""
        self._in_flight = None
        self._close_failed_manager()
        if is_disk_error(error):
            reason = describe_disk_error(error)
            self._log(f"warning: checkpoint {step} was NOT saved ({reason}); training goes on until the next save")
        try:
            run_on_primary(lambda: checkpoint_folder.clean_up(self.folder, self._log))
        except OSError as second:
            self._log(f"warning: {self.folder} could not be cleaned up ({second})")
        self._start_manager()  # a new one: Orbax's manager raises an old failure again at every later save
        if not is_disk_error(error):
            raise error

    def _close_failed_manager(self) -> None:
        for _ in range(_CLOSE_ATTEMPTS):
            try:
                self._manager.close()
                break
            except Exception:  # the same failure, raised again at each of the stages of closing
                logging.getLogger(__name__).debug("closing after a failed save", exc_info=True)
        if self._barrier is not None:
            gather_json(None)  # no process waits at the barrier any more
            self._barrier.delete_keys()
