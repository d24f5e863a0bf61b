"""Reading checkpoints: what lies in a step's folder, whether it is whole, and how to open it for inference.

    runs/NAME/checkpoints/1200/state/…            the arrays, written by Orbax as one nested dict
                              /about/about.json   config, classes, metrics …, and shape, dtype and CRC32 of every leaf

A leaf's name is its key path joined by "/" ("params/head/conv/kernel"), so a checkpoint can be read without the classes
(optax states, Flax dataclasses) it was made of. Orbax doesn't notice a flipped byte: the checksums here do.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from tood_jax.training.checksums import Table, wrong_leaves
from tood_jax.training.records import json_safe

STATE, ABOUT, ABOUT_FILE = "state", "about", "about.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, or doesn't fit what is asked of it."""


class TornCheckpointError(CheckpointError):
    """A checkpoint is damaged: truncated, incomplete or with a wrong checksum."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by name, in flattening order.

    Raises ValueError if two leaves share a name or one's name is another's folder, TypeError if a leaf is no array.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(f"a state holds arrays only, but {name or 'it'} is a {type(leaf).__name__}")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name} is a typed key: store jax.random.key_data of it")
        if not name or name in leaves:
            raise ValueError(f"every leaf of a state needs a name of its own; {name!r} has none")
        leaves[name] = leaf
    nest(leaves)  # raises on names that clash
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} → {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name!r} lies below another leaf")
        if last in place:
            raise ValueError(f"{name!r} is both a leaf and a folder of leaves")
        place[last] = leaf
    return tree


def pack_about(about: Mapping[str, Any], leaves: Table) -> dict[str, Any]:
    """What about.json holds: `about`, the table of leaves, and a checksum over both."""
    body = json.loads(json.dumps({"about": json_safe(about), "leaves": leaves}))
    return {**body, "crc32": _crc_of_json(body)}


def _crc_of_json(body: Any) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def read_about(step_folder: Path) -> tuple[dict[str, Any], Table]:
    """(about, table of leaves) of one step's folder. Raises TornCheckpointError."""
    file = step_folder / ABOUT / ABOUT_FILE
    try:
        record = json.loads(file.read_bytes())
        crc = record.pop("crc32")
        about, leaves = record["about"], record["leaves"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise TornCheckpointError(f"{step_folder}: {ABOUT}/{ABOUT_FILE} cannot be read ({error})") from error
    if crc != _crc_of_json(record):
        raise TornCheckpointError(f"{step_folder}: wrong checksum of {ABOUT}/{ABOUT_FILE}")
    return about, leaves


def read_leaves(step_folder: Path, leaves: Table) -> dict[str, np.ndarray]:
    """Arrays of the named leaves (no others are read), checked against their checksums. Raises TornCheckpointError."""
    stored = {name: None for name, leaf in leaves.items() if math.prod(leaf["shape"])}  # Orbax refuses empty arrays
    item = nest({name: jax.ShapeDtypeStruct((), np.float32) for name in stored})  # only the structure counts
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        with _reader() as reader:
            tree = reader.restore((step_folder / STATE).absolute(), args=args) if stored else {}
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore report damage by many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise TornCheckpointError(f"{step_folder}: {STATE} cannot be read ({reason})") from error
    found = named_leaves(tree)
    arrays = {
        name: found[name] if name in stored else np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in leaves.items()
    }
    if wrong := wrong_leaves(arrays, leaves):
        raise TornCheckpointError(f"{step_folder}: wrong checksum of {', '.join(wrong)}")
    return arrays


def _reader() -> ocp.Checkpointer:
    """Each process reads for itself, and waits for no other: one of them may find the file torn."""
    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def check_same_leaves(leaves: Table, wanted: Mapping[str, Any], where: str) -> None:
    """Raises one CheckpointError that lists every missing, unexpected and ill-shaped leaf."""
    lines = [
        f"  missing in the checkpoint: {name} {_spell(leaf)}" for name, leaf in wanted.items() if name not in leaves
    ]
    lines += [
        f"  unexpected in the checkpoint: {name} {_spell(leaf)}" for name, leaf in leaves.items() if name not in wanted
    ]
    for name in (name for name in wanted if name in leaves):
        theirs, ours = _spell(leaves[name]), _spell(wanted[name])
        if theirs != ours:
            lines.append(f"  unlike: {name} is {theirs} in the checkpoint, {ours} in this run")
    if lines:
        raise CheckpointError(
            f"{where} was made by another architecture or another optimizer; {len(lines)} leaves differ:\n"
            + "\n".join(lines)
        )


def _spell(leaf: Any) -> str:
    shape, dtype = (leaf["shape"], leaf["dtype"]) if isinstance(leaf, dict) else (leaf.shape, leaf.dtype)
    return f"{dtype}[{', '.join(map(str, shape))}]"


def place_on_devices(arrays: Mapping[str, np.ndarray], abstract_state: Any) -> Any:
    """The pytree of `abstract_state` with the host arrays laid out by its leaves' shardings (default device if none).

    Every process has the whole array and hands over its devices' parts, so the number of devices is free to change.
    """

    def place(name: str, spec: Any) -> jax.Array:
        host, sharding = arrays[name], getattr(spec, "sharding", None)
        if sharding is None:
            return jax.numpy.asarray(host)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    placed = [place(name, spec) for name, spec in named_leaves(abstract_state).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), placed)


def list_steps(folder: Path) -> list[int]:
    """Steps with a finished folder, in rising order: Orbax gives a folder its final name only when all is written."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _is_step_name(entry.name) and entry.is_dir())


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdigit()


def average_precision(about: Mapping[str, Any]) -> float | None:
    """metrics["AP"] where it is a finite number, else None."""
    ap = (about.get("metrics") or {}).get("AP")
    return float(ap) if isinstance(ap, int | float) and math.isfinite(ap) else None


def pick_best(ap_of_steps: Mapping[int, float | None]) -> int | None:
    """Step with the highest AP, the later one of equals; None if none has an AP."""
    ranked = [(ap, step) for step, ap in ap_of_steps.items() if ap is not None]
    return max(ranked)[1] if ranked else None


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, opened to be read: `about` is here, arrays come when asked for."""

    folder: Path
    """The step's folder."""
    step: int
    about: dict[str, Any]
    """Config, classes, metrics … as given to `CheckpointStore.save`, with "step", "metrics" and "versions"."""
    leaves: Table
    """Shape, dtype and CRC32 by leaf name."""

    @property
    def groups(self) -> list[str]:
        """Top-level names of the state: params, batch_stats, ema, …"""
        return list(dict.fromkeys(name.split("/")[0] for name in self.leaves))

    def arrays(self, *groups: str) -> dict[str, Any]:
        """Nested dict of numpy arrays of these groups only (the optimizer isn't read unless asked for).

        Raises CheckpointError for a group it hasn't, TornCheckpointError for damage.
        """
        absent = [group for group in groups if group not in self.groups]
        if absent:
            raise CheckpointError(f"{self.folder} holds no {', '.join(absent)}; it holds {', '.join(self.groups)}")
        wanted = {name: leaf for name, leaf in self.leaves.items() if name.split("/")[0] in groups}
        return nest(read_leaves(self.folder, wanted))

    def restore(self, abstract_state: Any) -> Any:
        """State like `abstract_state` (shapes, dtypes, shardings), which may name some of the groups only.

        Raises CheckpointError listing every difference within those groups, TornCheckpointError for damage.
        """
        wanted = named_leaves(abstract_state)
        groups = {name.split("/")[0] for name in wanted}
        ours = {name: leaf for name, leaf in self.leaves.items() if name.split("/")[0] in groups}
        check_same_leaves(ours, wanted, str(self.folder))
        return place_on_devices(read_leaves(self.folder, ours), abstract_state)


def open_checkpoint(
    path: str | Path, step: int | Literal["best", "latest"] = "best", say: Callable[[str], None] = print
) -> Checkpoint:
    """Opens a checkpoint for evaluation or prediction, from its folder alone.

    Args:
      path: the run's folder (runs/NAME), its `checkpoints` folder, or one step's folder (which settles the step).
      step: a number; "latest"; or "best" by AP, which is the latest where no AP was ever recorded.
      say: hears of checkpoints passed over because they are torn.

    Raises CheckpointError, saying what the path holds.
    """
    path = Path(path)
    if _is_step_name(path.name) and (path / STATE).is_dir():
        if isinstance(step, int) and step != int(path.name):
            raise CheckpointError(f"step {step} was asked for, but {path} is the folder of step {int(path.name)}")
        return Checkpoint(path, int(path.name), *read_about(path))
    folder = path / "checkpoints" if list_steps(path / "checkpoints") else path
    steps = list_steps(folder)
    if not steps:
        raise CheckpointError(_nothing_here(path))
    if isinstance(step, int):
        if step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {folder}: it has {', '.join(map(str, steps))}")
        return Checkpoint(folder / str(step), step, *read_about(folder / str(step)))
    if step not in ("best", "latest"):
        raise CheckpointError(f"a step is a number, 'best' or 'latest', not {step!r}")
    return _newest_or_best(folder, steps, step, say)


def _newest_or_best(folder: Path, steps: list[int], which: str, say: Callable[[str], None]) -> Checkpoint:
    opened: dict[int, Checkpoint] = {}
    for step in reversed(steps):
        try:
            opened[step] = Checkpoint(folder / str(step), step, *read_about(folder / str(step)))
        except TornCheckpointError as error:
            say(f"warning: passed over a torn checkpoint: {error}")
    if not opened:
        raise CheckpointError(f"no whole checkpoint in {folder}: all of {', '.join(map(str, steps))} are torn")
    best = pick_best({step: average_precision(one.about) for step, one in opened.items()})
    return opened[max(opened) if which == "latest" or best is None else best]


def _nothing_here(path: Path) -> str:
    advice = "give the run's folder (runs/NAME), its checkpoints folder, or the folder of one step"
    if not path.exists():
        return f"no such folder: {path}; {advice}"
    if not path.is_dir():
        return f"no checkpoint: {path} is a file; {advice}"
    names = sorted(entry.name for entry in path.iterdir())
    held = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"no checkpoint in {path}: it holds {held or 'nothing'}; {advice}"
