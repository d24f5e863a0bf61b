"""Compare config, data and packages of all processes of a run, before anything is compiled.

Processes with different data or configs would dispatch different steps, or a different number of them, and then wait
for each other.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from tood_jax.checkpoint.package_versions import package_versions
from tood_jax.config import Config, to_dict
from tood_jax.data.dataset import Dataset
from tood_jax.distributed.host_sync import gather_json, leave_last
from tood_jax.distributed.signals import StatusError
from tood_jax.untrusted.printable import printable

_PACKAGES = ("tood_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_PER_HOST = ("workers", "threads", "prefetch_batches", "timeout_seconds")  # fields of data that may differ per host


class DisagreementError(StatusError):
    """The processes of a run differ in config, data or packages; the message says which process has what."""


def check_same_everywhere(facts: Mapping[str, Any]) -> None:
    """Compare facts (JSON values by name) over all processes; all must call it.

    Raises:
        DisagreementError: in all processes.
    """
    differences = describe_differences(gather_json(dict(facts)))
    if differences:
        leave_last()
        raise DisagreementError(
            f"The processes of this run disagree: {'; '.join(differences)}. Give all of them the same, and start again."
        )


def describe_differences(facts: list[dict[str, Any]]) -> list[str]:
    """Return one part of a sentence for each fact in which processes differ.

    Args:
        facts: of each process, in their order.
    """
    names = dict.fromkeys(name for values in facts for name in values)
    return [f"{name}: {_who_has_what(values)}" for name in names if len(values := _by_value(facts, name)) > 1]


def describe_process(config: Config, train_set: Dataset, val_set: Dataset) -> dict[str, Any]:
    """Return config, data and packages of this process, by name; paths of data may differ, the data may not."""
    return {
        **{f"--{name}": value for name, value in _flat(_common(config))},
        "classes": [one.name for one in train_set.classes],
        "data.train": _describe_set(train_set),
        "data.val": _describe_set(val_set),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about numbers."""
    return {"Python": ".".join(map(str, sys.version_info[:2])), **package_versions(_PACKAGES)}


def _common(config: Config) -> dict[str, Any]:
    plain = to_dict(config)
    plain["data"] = {name: value for name, value in plain["data"].items() if name not in (*_PER_HOST, "train", "val")}
    return plain


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def _describe_set(dataset: Dataset) -> str:
    about = dataset.fingerprint
    digest = zlib.crc32(json.dumps(about).encode())
    return f"{about['images']} images and {about['objects']} objects (checksum {digest:08x})"


def _by_value(facts: list[dict[str, Any]], name: str) -> dict[str, list[int]]:
    """Return the processes by the value they have, as text."""
    found: dict[str, list[int]] = {}
    for process, values in enumerate(facts):
        value = values.get(name)
        found.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(process)
    return found


def _who_has_what(values: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{_processes(who)} {printable(what, 200)}" for what, who in values.items())


def _processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"processes {shown} have" if len(numbers) > 1 else f"process {shown} has"
