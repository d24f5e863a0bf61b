"""Fingerprint of a run's data and plan in its checkpoints: images and boxes of each split, batch size, epoch length.

A step number means the same data, learning rate and phase only while these stay; so a run that resumes compares them
with those of its checkpoint. Paths do not count: the same data set may move or change its format.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tood_jax.checkpoint.reader import CheckpointError
from tood_jax.config import Config
from tood_jax.data.dataset import ClassInfo, Dataset
from tood_jax.training.plan import Plan
from tood_jax.untrusted.printable import printable

ACCEPT_FLAG = "--train.accept_other_data=true"
_SHOWN = 5  # classes named in a sentence
_PARTS = {"ids": "ids or order of the images", "sizes": "sizes of the images", "boxes": "boxes", "labels": "labels"}
_NUMBERS = {"batch_size": "train.batch_size", "epoch_steps": "the number of steps per epoch"}


def describe_run(config: Config, plan: Plan, splits: Mapping[str, Dataset]) -> dict[str, Any]:
    """Return the fingerprint of a run, as JSON.

    Args:
        splits: by name, "train" and "val".
    """
    return {
        "batch_size": config.train.batch_size,
        "epoch_steps": plan.epoch_steps,
        "splits": {name: dataset.fingerprint for name, dataset in splits.items()},
    }


def check_same_classes(old: Sequence[Mapping[str, Any]], new: Iterable[ClassInfo], where: str) -> None:
    """Compare the classes of a checkpoint with those of the data; ids alone may change.

    Args:
        old: the "classes" of the checkpoint, dicts with "id" and "name".
        where: names the checkpoint in the message.

    Raises:
        CheckpointError: names were added, removed, renamed or exchanged.
    """
    before, now = {row["id"]: str(row["name"]) for row in old}, {info.id: info.name for info in new}
    if [*before.values()] == [*now.values()]:
        return
    raise CheckpointError(
        f"{where} was trained on other classes: {_difference(before, now)}. Give the run the annotations it began "
        "with, or begin a new one from its weights: --init_from with this folder, and another --train.workdir."
    )


def check_same_data(old: Mapping[str, Any], new: Mapping[str, Any], *, step: int, accepted: bool, where: str) -> str:
    """Compare the fingerprint of a checkpoint with that of a run that continues from it.

    Args:
        old: {} for a checkpoint without a fingerprint, which fits everything.
        step: of the checkpoint.
        accepted: train.accept_other_data.
        where: names the checkpoint in the message.

    Returns:
        "" if both are the same, or a sentence about the consequences.

    Raises:
        CheckpointError: they differ, and that is not accepted.
    """
    changes = [*_changed_numbers(old, new), *_changed_splits(old.get("splits") or {}, new["splits"])]
    if not changes:
        return ""
    differences = "; ".join(changes)
    if not accepted:
        raise CheckpointError(
            f"{where} was trained under other data or another plan: {differences}. Restore them, begin a new run "
            f"(another --train.workdir), or go on all the same with {ACCEPT_FLAG}."
        )
    epoch = f"Step {step} is the end of epoch {step / new['epoch_steps']:.2f} now"
    if old.get("epoch_steps"):
        epoch += f" (it was {step / old['epoch_steps']:.2f})"
    return (
        f"Going on under other data or another plan (train.accept_other_data): {differences}. {epoch}; the learning "
        "rate, the phase and the order of the images follow the new plan, and earlier APs may not compare with later "
        "ones."
    )


def _changed_numbers(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} is {new[key]} (was {old[key]})"
        for key, what in _NUMBERS.items()
        if old.get(key) is not None and old[key] != new[key]
    ]


def _changed_splits(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"data.{name} has {_changed_split(old[name], split)}"
        for name, split in new.items()
        if name in old and any(old[name].get(key) != value for key, value in split.items())
    ]


def _changed_split(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return a part of a sentence: "20 images (was 12) and 41 objects (was 23)"."""
    counts = " and ".join(
        f"{new[key]} {key}" + (f" (was {old.get(key)})" if old.get(key) != new[key] else "")
        for key in ("images", "objects")
    )
    if (old.get("images"), old.get("objects")) != (new["images"], new["objects"]):
        return counts
    other = " and ".join(text for key, text in _PARTS.items() if old.get(key) != new[key])
    return f"{counts} as before, but other {other}"


def _difference(before: Mapping[Any, str], now: Mapping[Any, str]) -> str:
    """Return how two lists of class names differ, as part of a sentence."""
    old, new = [*before.values()], [*now.values()]
    removed, added = [name for name in old if name not in new], [name for name in new if name not in old]
    renamed = {name: now[id_] for id_, name in before.items() if name in removed and now.get(id_) in added}
    parts = [f"{_name(former)} is {_name(name)} now" for former, name in renamed.items()]
    parts += [f"{_name(name)} is missing" for name in removed if name not in renamed]
    parts += [f"{_name(name)} is new" for name in added if name not in renamed.values()]
    if not parts:
        moved = [former for former, name in zip(old, new, strict=False) if former != name] or old
        parts = [f"{_name(name)} is number {new.index(name) + 1} (was {old.index(name) + 1})" for name in moved]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def _name(text: str) -> str:
    return repr(printable(text, 60))
