"""Saving checkpoints while training goes on, and finding the newest whole one again.

A save is asynchronous and atomic: the state is copied to the host before `save` returns (the step may donate its
buffers at once), Orbax writes it in the background under a temporary name and renames it when all is there.
Everything here is called by all processes alike; `folder` is on a file system that they share. Each of them writes its
part of the state; what lies in the folder, and what is to be done about it, the first one finds out and tells.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tood_jax.training.checkpoint_files import (
    ABOUT,
    ABOUT_FILE,
    STATE,
    Checkpoint,
    CheckpointError,
    TornCheckpointError,
    average_precision,
    check_same_leaves,
    list_steps,
    named_leaves,
    nest,
    open_checkpoint,
    pack_about,
    pick_best,
    place_on_devices,
    read_about,
    read_leaves,
)
from tood_jax.training.checksums import Table, describe_global, describe_leaves
from tood_jax.training.meeting import Meeting
from tood_jax.training.messages import from_all, from_first
from tood_jax.training.orbax_noise import silence_orbax

__all__ = ["Checkpoint", "CheckpointError", "CheckpointStore", "TornCheckpointError", "open_checkpoint"]

_TEMPORARY = ".orbax-checkpoint-tmp"
_REPLACED = "replaced"  # an older folder of a step being saved anew, till the new one is whole
_SET_ASIDE = "set_aside"  # steps later than one being saved: torn, or of a course that was abandoned
_DISK_TROUBLE = ("No space left on device", "quota exceeded", "File too large", "RESOURCE_EXHAUSTED")
_CLOSING_ATTEMPTS = 4
_PACKAGES = ("tood_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


class CheckpointStore:
    """The checkpoints of one run, in `folder`: the newest `keep_latest` and the best one by metrics["AP"].

    Trouble with the disk (OSError, also in the background) is said, not raised: training goes on till the next save.

    Args:
      folder: created if missing; on a mounted file system.
      keep_latest: newest checkpoints kept, at least 1.
      say: hears warnings, one text each.
    """

    def __init__(self, folder: str | Path, keep_latest: int, say: Callable[[str], None] = print):
        if "://" in str(folder):
            raise ValueError(f"checkpoints go to a mounted file system, not to {folder}")
        if keep_latest < 1:
            raise ValueError(f"keep_latest must be at least 1, not {keep_latest}")
        self.folder = Path(folder).absolute()
        self._keep_latest = keep_latest
        self._say = say
        self._in_flight: int | None = None
        silence_orbax()
        self._tidy()
        self._ap = self._read_all_ap()
        self._manager = self._new_manager()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:  # after an error the others may never come to the closing
            self.close()

    # ------------------------------------------------------------------ saving

    def save(self, step: int, state: Any, about: dict[str, Any], metrics: dict[str, Any] | None = None) -> bool:
        """Begins to save, and returns once the state is copied to the host (after the save before it has ended).

        A step saved before with the same state only has its `about` and metrics renewed. With another state it is
        replaced, but not removed before the new one is whole. Steps later than `step` (torn ones that were passed
        over, or those of a course abandoned by restoring an earlier step) move to `set_aside/`.

        Args:
          state: pytree of arrays (no typed keys: use `jax.random.key_data`).
          about: JSON dict. "step", "metrics", "versions" are added; non-finite numbers become strings.
          metrics: metrics["AP"] ranks the checkpoint; missing or not finite: unranked. Of a step saved twice, the
            former metrics are kept unless new ones are given.

        Returns whether the save was begun (False: trouble with the disk, which was said).
        """
        self.wait()
        stored, leaves = _snapshot(state)
        known = from_first(lambda: self._read_if_whole(step))
        if metrics is None and known is not None:
            metrics = known[0].get("metrics")
        record = pack_about({"versions": _versions(), **about, "step": int(step), "metrics": metrics}, leaves)
        self._ap[step] = average_precision(record["about"])
        try:
            if known is not None and known[1] == record["leaves"]:
                self._on_primary(lambda: _write_atomically(self._step_folder(step) / ABOUT / ABOUT_FILE, record))
                return True
            steps = self.steps()  # before the first process moves anything, so that all see the same
            self._on_primary(self._remove_temporary)
            self._make_way_for(step, steps)
            self._in_flight = step
            args = ocp.args.Composite(state=ocp.args.PyTreeSave(stored), about=ocp.args.JsonSave(record))
            with _failing_together():
                self._manager.save(step, args=args, force=True)
        except Exception as error:
            self._recover(step, error)
            return False
        return True

    def wait(self) -> None:
        """Returns when the save under way, if any, has ended."""
        step, self._in_flight = self._in_flight, None
        if step is None:
            return
        try:
            with _failing_together():
                self._manager.wait_until_finished()
                if jax.process_index() == 0 and not self._step_folder(step).is_dir():
                    raise OSError(f"{self._step_folder(step)} was not written")
        except Exception as error:
            self._recover(step, error)
            return
        self._on_primary(lambda: shutil.rmtree(self.folder / _REPLACED, ignore_errors=True))

    def close(self) -> None:
        """Waits for the save under way and ends the background threads."""
        self.wait()
        self._on_primary(self._remove_temporary)
        self._manager.close()

    # ------------------------------------------------------------------ finding and restoring

    def steps(self) -> list[int]:
        """Steps of finished checkpoints, in rising order (torn ones included: only reading tells)."""
        return from_first(lambda: list_steps(self.folder))

    def latest_step(self) -> int | None:
        """Newest finished step, None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Finished step with the highest AP (the later of equals), None if none has an AP."""
        return pick_best({step: self._ap.get(step) for step in self.steps()})

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(state, about) of `step`, or of the newest whole checkpoint; torn ones are named through `say`.

        Args:
          abstract_state: pytree of arrays or jax.ShapeDtypeStruct; the leaves' shardings decide where arrays go.

        Raises CheckpointError: there is none, none is whole, or the leaves differ (each is listed).
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}: it has {', '.join(map(str, steps))}")
        wanted = named_leaves(abstract_state)
        torn: list[str] = []
        for candidate in [step] if step is not None else reversed(steps):
            folder, arrays, reason = self._step_folder(candidate), None, f"{candidate} is torn, says another process"
            try:
                about, leaves = read_about(folder)
                check_same_leaves(leaves, wanted, str(folder))
                arrays = read_leaves(folder, leaves)
            except TornCheckpointError as error:
                reason = str(error)
            if all(from_all(arrays is not None)) and arrays is not None:
                return place_on_devices(arrays, abstract_state), about
            torn.append(reason)
            self._say(f"warning: passed over a torn checkpoint: {reason}")
        raise CheckpointError(f"no whole checkpoint in {self.folder}:\n  " + "\n  ".join(torn))

    # ------------------------------------------------------------------ housekeeping

    def _step_folder(self, step: int) -> Path:
        return self.folder / str(step)

    def _new_manager(self) -> ocp.CheckpointManager:
        newest = ocp.checkpoint_managers.LatestN(self._keep_latest)
        state = ocp.PyTreeCheckpointHandler(multiprocessing_options=_all_processes())
        about = ocp.JsonCheckpointHandler(filename=ABOUT_FILE, multiprocessing_options=_all_processes())
        waiting = None
        if jax.process_count() > 1:
            meeting = Meeting()
            state, about = meeting.hears(state), meeting.hears(about)
            waiting = ocp.AsyncOptions(barrier_sync_fn=meeting.wait)
        return ocp.CheckpointManager(
            self.folder,
            item_names=(STATE, ABOUT),
            item_handlers={STATE: state, ABOUT: about},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, _Best(self._ap)]),
                lightweight_initialize=True,  # a torn file of an old step must not stop the manager from starting
                create=False,
                async_options=waiting,
                multiprocessing_options=_all_processes(),
            ),
        )

    def _read_if_whole(self, step: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return read_about(self._step_folder(step))
        except TornCheckpointError:
            return None

    def _read_ap(self, step: int) -> float | None:
        known = self._read_if_whole(step)
        return average_precision(known[0]) if known else None

    def _read_all_ap(self) -> dict[int, float | None]:
        return dict(from_first(lambda: [(step, self._read_ap(step)) for step in list_steps(self.folder)]))

    def _make_way_for(self, step: int, steps: list[int]) -> None:
        if step in steps:
            self._say(f"checkpoint {step} exists with another state; it is replaced once the new one is whole")
            self._on_primary(lambda: self._move(step, self.folder / _REPLACED / str(step)))
        later = [other for other in steps if other > step]
        if later:
            names = ", ".join(map(str, later))
            self._say(f"checkpoints later than the one saved now ({step}) move to {self.folder / _SET_ASIDE}: {names}")
            self._on_primary(lambda: self._set_aside(later))
        if later or step in steps:
            self._manager.reload()

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            places = [self.folder / _SET_ASIDE / f"{step}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000)))]
            self._move(step, next(place for place in places if not place.exists()))

    def _move(self, step: int, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._step_folder(step).rename(target)

    def _tidy(self) -> None:
        """Removes what cut-off saves left behind, and brings back a step that was being replaced."""

        def tidy() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporary()
            for former in sorted((self.folder / _REPLACED).glob("*")):
                if not (self.folder / former.name).exists():
                    self._say(f"warning: the save that was to replace checkpoint {former.name} was cut off; kept it")
                    former.rename(self.folder / former.name)
            shutil.rmtree(self.folder / _REPLACED, ignore_errors=True)

        self._on_primary(tidy)

    def _remove_temporary(self) -> None:
        """Between saves too: threads of a failed one may write on for a moment after it was given up."""
        for entry in sorted(self.folder.glob(f"*{_TEMPORARY}*")):
            self._say(f"warning: {entry} is left of a save that was cut off; removed")
            shutil.rmtree(entry, ignore_errors=True)

    def _recover(self, step: int, error: Exception) -> None:
        """Frees what a failed save left, and says or raises its error."""
        self._in_flight = None
        for _ in range(_CLOSING_ATTEMPTS):
            try:
                self._manager.close()
                break
            except Exception:  # the same failure, told again, at each of the stages of closing
                logging.getLogger(__name__).debug("closing after a failed save", exc_info=True)
        if _is_disk_trouble(error):
            text = str(error).strip() or type(error).__name__
            where = "".join(re.findall(r"^in process \d+: ", text))
            first_line = text.removeprefix(where).splitlines()[0][:300]
            reason = where + next((known for known in _DISK_TROUBLE if known in text), first_line)
            self._say(f"warning: checkpoint {step} was NOT saved ({reason}); training goes on till the next save")
        try:
            self._tidy()
        except OSError as second:
            self._say(f"warning: {self.folder} could not be tidied ({second})")
        self._ap = self._read_all_ap()
        self._manager = self._new_manager()  # Orbax's manager tells an old failure again at every later save
        if not _is_disk_trouble(error):
            raise error

    def _on_primary(self, act: Callable[[], object]) -> None:
        """Does it in the first process; the others wait, and fail if it fails."""

        def act_and_say_nothing() -> None:
            act()

        from_first(act_and_say_nothing)


class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the step with the highest AP. (Orbax's BestN wants metric files, and one torn file stops the manager.)"""

    def __init__(self, ap_of_steps: dict[int, float | None]):
        self._ap = ap_of_steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        best = pick_best({info.step: self._ap.get(info.step) for info in checkpoints})
        return [info.step == best for info in checkpoints]


def _snapshot(state: Any) -> tuple[dict[str, Any], Table]:
    """What Orbax shall write (without empty arrays, which it refuses), safe from later donation; and the checksums."""
    leaves = named_leaves(state)
    if jax.process_count() > 1:  # Orbax copies this process's parts to the host before its `save` returns
        return nest({name: leaf for name, leaf in leaves.items() if leaf.size}), describe_global(leaves)
    host = {name: _host_copy(leaf) for name, leaf in leaves.items()}
    return nest({name: array for name, array in host.items() if array.size}), describe_leaves(host)


def _host_copy(leaf: Any) -> np.ndarray:
    """A copy of the whole array on the host, which no later donation can touch."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        # By a shard of its own: a view held by the array itself would bar its buffer from donation.
        return np.array(leaf.addressable_data(0))
    return np.array(leaf)


def _all_processes() -> ocp.options.MultiprocessingOptions:
    """Named one by one, they wait for each other by the coordinator, not by the devices, which are busy with steps."""
    everyone = set(range(jax.process_count())) if jax.process_count() > 1 else None
    return ocp.options.MultiprocessingOptions(active_processes=everyone)


@contextlib.contextmanager
def _failing_together() -> Iterator[None]:
    """If the block fails in one process, it fails in all, with the first one's error."""
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    told = from_all(None if error is None else [str(error) or type(error).__name__, _is_disk_trouble(error)])
    if error is not None:
        raise error
    if failures := [(index, *one) for index, one in enumerate(told) if one is not None]:
        index, text, of_the_disk = failures[0]
        raise (OSError if of_the_disk else RuntimeError)(f"in process {index}: {text}")


def _is_disk_trouble(error: BaseException) -> bool:
    """OSError, also where TensorStore wraps it into a ValueError, or as the cause of another."""
    if isinstance(error, OSError) or any(text in str(error) for text in _DISK_TROUBLE):
        return True
    return error.__cause__ is not None and _is_disk_trouble(error.__cause__)


def _write_atomically(file: Path, record: dict[str, Any]) -> None:
    fresh = file.with_name(file.name + ".new")
    try:
        with open(fresh, "w") as out:
            json.dump(record, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
