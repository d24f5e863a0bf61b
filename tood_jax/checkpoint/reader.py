"""Read checkpoints: find a step's folder, check that it is complete, and open it for inference.

    runs/NAME/checkpoints/1200/state/…            the arrays, written by Orbax as one nested dict
                              /about/about.json   config, classes, metrics …, and shape, dtype and CRC32 of every leaf

A leaf's name is its key path joined by "/" ("params/head/conv/kernel"), so a checkpoint can be read without the classes
(optax states, Flax dataclasses) it was made of. Orbax does not notice a flipped byte: the checksums here do.
"""

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from tood_jax.checkpoint.about_json import MAX_ABOUT_BYTES, crc_of_json, parse_about
from tood_jax.checkpoint.checksums import Table, wrong_leaves
from tood_jax.run_log.strict_json import json_safe
from tood_jax.untrusted.bounded_json import JsonError
from tood_jax.untrusted.regular_files import read_regular

STATE, ABOUT, ABOUT_FILE = "state", "about", "about.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, or does not fit the run or the model."""


class OtherLeavesError(CheckpointError):
    """The arrays of a checkpoint are not those of the model or the optimizer; the message lists the differences."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is damaged: truncated, incomplete or with a wrong checksum."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by name, in flattening order.

    Raises:
        ValueError: two leaves share a name, or one's name is another's folder.
        TypeError: a leaf is no array.
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
    nest(leaves)  # raises for names that conflict
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": x}} for {"a/b": x}."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        parent = tree
        for folder in folders:
            parent = parent.setdefault(folder, {})
            if not isinstance(parent, dict):
                raise ValueError(f"{name!r} lies below another leaf")
        if last in parent:
            raise ValueError(f"{name!r} is both a leaf and a folder of leaves")
        parent[last] = leaf
    return tree


def pack_about(about: Mapping[str, Any], leaves: Table) -> dict[str, Any]:
    """Return the content of about.json: `about`, the table of leaves, and a checksum over both."""
    body = json.loads(json.dumps({"about": json_safe(about), "leaves": leaves}))
    return {**body, "crc32": crc_of_json(body)}


def read_about(step_folder: Path) -> tuple[dict[str, Any], Table]:
    """Return (about, table of leaves) of one step's folder. Raises DamagedCheckpointError."""
    try:
        about, leaves = parse_about(read_regular(step_folder / ABOUT / ABOUT_FILE, MAX_ABOUT_BYTES))
    except JsonError as error:
        raise DamagedCheckpointError(f"{step_folder}: {ABOUT}/{ABOUT_FILE} cannot be read: it {error}") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{step_folder}: {ABOUT}/{ABOUT_FILE} cannot be read ({error})") from error
    step = about.get("step")
    if step is not None and _is_step_name(step_folder.name) and step != int(step_folder.name):
        raise DamagedCheckpointError(f"{step_folder} holds the checkpoint of step {step}: give the folder that name")
    return about, leaves


def read_leaves(step_folder: Path, leaves: Table) -> dict[str, np.ndarray]:
    """Return the arrays of these leaves only, checked against their checksums. Raises DamagedCheckpointError."""
    stored = {name: None for name, leaf in leaves.items() if math.prod(leaf["shape"])}  # Orbax refuses empty arrays
    item = nest({name: jax.ShapeDtypeStruct((), np.float32) for name in stored})  # only the structure matters
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        with _make_reader() as reader:
            state_folder = (step_folder / STATE).absolute()
            if stored:
                _check_stored_shapes(state_folder, leaves)
            tree = reader.restore(state_folder, args=args) if stored else {}
    except MemoryError:
        raise
    except Exception as error:  # Orbax and TensorStore report damage by errors of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise DamagedCheckpointError(f"{step_folder}: {STATE} cannot be read ({reason})") from error
    found = named_leaves(tree)
    arrays = {
        name: found[name] if name in stored else np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in leaves.items()
    }
    if wrong := wrong_leaves(arrays, leaves):
        raise DamagedCheckpointError(f"{step_folder}: wrong checksum of {', '.join(wrong)}")
    return arrays


def _check_stored_shapes(state_folder: Path, leaves: Table) -> None:
    """Raise ValueError if an array on disk has another shape than in the table, before memory is allocated for it."""
    with contextlib.closing(_make_handler()) as handler:
        stored = named_leaves(handler.metadata(state_folder).tree)
    for name, array in stored.items():
        if name in leaves and list(array.shape) != leaves[name]["shape"]:
            raise ValueError(f"{name} is {list(array.shape)} there and {leaves[name]['shape']} in {ABOUT_FILE}")


def _make_reader() -> ocp.Checkpointer:
    """Return a reader that waits for no other process: only one of them may find a damaged file."""
    return ocp.Checkpointer(_make_handler(), multiprocessing_options=_this_process_only())


def _make_handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=_this_process_only())


def _this_process_only() -> ocp.options.MultiprocessingOptions:
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader_{own}"
    )


def check_same_leaves(leaves: Table, expected: Mapping[str, Any], where: str) -> None:
    """Raise one OtherLeavesError that lists every missing leaf, every unexpected one, every other shape or dtype."""
    lines = [
        f"  missing in the checkpoint: {name} {_format(leaf)}" for name, leaf in expected.items() if name not in leaves
    ]
    lines += [
        f"  unexpected in the checkpoint: {name} {_format(leaf)}"
        for name, leaf in leaves.items()
        if name not in expected
    ]
    for name in (name for name in expected if name in leaves):
        stored, own = _format(leaves[name]), _format(expected[name])
        if stored != own:
            lines.append(f"  different: {name} is {stored} in the checkpoint, {own} in this run")
    if lines:
        raise OtherLeavesError(
            f"{where} was made by another architecture or another optimizer; {len(lines)} leaves differ:\n"
            + "\n".join(lines)
        )


def _format(leaf: Any) -> str:
    shape, dtype = (leaf["shape"], leaf["dtype"]) if isinstance(leaf, dict) else (leaf.shape, leaf.dtype)
    return f"{dtype}[{', '.join(map(str, shape))}]"


def place_on_devices(arrays: Mapping[str, np.ndarray], abstract_state: Any) -> Any:
    """Return a pytree like `abstract_state` of the host arrays, laid out by its leaves' shardings.

    A leaf without a sharding goes to the default device. Every process has whole arrays and puts its devices' parts, so
    the number of devices may differ from that at the save.
    """

    def place(name: str, spec: Any) -> jax.Array:
        host, sharding = arrays[name], getattr(spec, "sharding", None)
        if sharding is None:
            return jax.numpy.asarray(host)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    placed = [place(name, spec) for name, spec in named_leaves(abstract_state).items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), placed)


def list_steps(folder: Path) -> list[int]:
    """Return the steps with a finished folder, in rising order: Orbax renames a folder when everything is written."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if _is_step_name(entry.name) and entry.is_dir())


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdigit()


def ranking_metric(about: Mapping[str, Any]) -> str:
    """Return the name of the metric that ranks a run's checkpoints: train.best of its config."""
    config = about.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    name = train.get("best") if isinstance(train, dict) else None
    return name if isinstance(name, str) else "AP"


def ranking_value(about: Mapping[str, Any], metric: str) -> float | None:
    """Return this metric of a checkpoint where it is a finite number, else None."""
    value = (about.get("metrics") or {}).get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def pick_best(value_of_steps: Mapping[int, float | None]) -> int | None:
    """Return the step with the highest value, the later one of equals; None if none has a value."""
    ranked = [(value, step) for step, value in value_of_steps.items() if value is not None]
    return max(ranked)[1] if ranked else None


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, opened for reading: `about` is loaded, arrays are read on request."""

    folder: Path
    """The step's folder."""
    step: int
    about: dict[str, Any]
    """Config, classes, metrics … as given to `CheckpointStore.save`, with "step", "metrics" and "versions"."""
    leaves: Table
    """Shape, dtype and CRC32 by leaf name."""

    @property
    def groups(self) -> list[str]:
        """The top-level names of the state: params, batch_stats, ema, …"""
        return list(dict.fromkeys(name.split("/")[0] for name in self.leaves))

    def arrays(self, *groups: str) -> dict[str, Any]:
        """Return a nested dict of numpy arrays of these groups; nothing else is read.

        Raises:
            CheckpointError: it has no such group.
            DamagedCheckpointError: it is damaged.
        """
        absent = [group for group in groups if group not in self.groups]
        if absent:
            raise CheckpointError(f"{self.folder} holds no {', '.join(absent)}; it holds {', '.join(self.groups)}")
        chosen = {name: leaf for name, leaf in self.leaves.items() if name.split("/")[0] in groups}
        return nest(read_leaves(self.folder, chosen))

    def restore(self, abstract_state: Any) -> Any:
        """Return a state like `abstract_state` (shapes, dtypes, shardings), which may have some of the groups only.

        Raises:
            CheckpointError: leaves of these groups differ; each is listed.
            DamagedCheckpointError: it is damaged.
        """
        expected = named_leaves(abstract_state)
        groups = {name.split("/")[0] for name in expected}
        stored = {name: leaf for name, leaf in self.leaves.items() if name.split("/")[0] in groups}
        check_same_leaves(stored, expected, str(self.folder))
        return place_on_devices(read_leaves(self.folder, stored), abstract_state)


def open_checkpoint(
    path: str | Path, step: int | Literal["best", "latest"] = "best", log: Callable[[str], object] = print
) -> Checkpoint:
    """Open a checkpoint for evaluation or prediction, from its folder alone.

    Args:
        path: the run's folder (runs/NAME), its `checkpoints` folder, or one step's folder (which determines the step).
        step: a number; "latest"; or "best" by the newest one's train.best: the latest where none was evaluated.
        log: called with a warning for each damaged checkpoint that is skipped.

    Raises:
        CheckpointError: there is none; the message names what the path holds.
    """
    path = Path(path)
    if _is_step_name(path.name) and (path / STATE).is_dir():
        if isinstance(step, int) and step != int(path.name):
            raise CheckpointError(f"step {step} was asked for, but {path} is the folder of step {int(path.name)}")
        return Checkpoint(path, int(path.name), *read_about(path))
    folder = path / "checkpoints" if list_steps(path / "checkpoints") else path
    steps = list_steps(folder)
    if not steps:
        raise CheckpointError(_describe_content(path))
    if isinstance(step, int):
        if step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {folder}: it has {', '.join(map(str, steps))}")
        return Checkpoint(folder / str(step), step, *read_about(folder / str(step)))
    if step not in ("best", "latest"):
        raise CheckpointError(f"a step is a number, 'best' or 'latest', not {step!r}")
    return _newest_or_best(folder, steps, step, log)


def _newest_or_best(folder: Path, steps: list[int], which: str, log: Callable[[str], object]) -> Checkpoint:
    opened: dict[int, Checkpoint] = {}
    for step in reversed(steps):
        try:
            opened[step] = Checkpoint(folder / str(step), step, *read_about(folder / str(step)))
        except DamagedCheckpointError as error:
            log(f"warning: skipped a damaged checkpoint: {error}")
    if not opened:
        raise CheckpointError(f"no complete checkpoint in {folder}: all of {', '.join(map(str, steps))} are damaged")
    metric = ranking_metric(opened[max(opened)].about)
    best = pick_best({step: ranking_value(checkpoint.about, metric) for step, checkpoint in opened.items()})
    return opened[max(opened) if which == "latest" or best is None else best]


def _describe_content(path: Path) -> str:
    advice = "give the run's folder (runs/NAME), its checkpoints folder, or the folder of one step"
    if not path.exists():
        return f"no such folder: {path}; {advice}"
    if not path.is_dir():
        return f"no checkpoint: {path} is a file; {advice}"
    names = sorted(entry.name for entry in path.iterdir())
    held = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"no checkpoint in {path}: it holds {held or 'nothing'}; {advice}"
