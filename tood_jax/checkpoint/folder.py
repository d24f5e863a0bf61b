"""Files in the folder of a run's checkpoints: leftovers of interrupted saves, and steps that make room for others.

To be called by the primary process only.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

SET_ASIDE = "set_aside"
"""Folder of steps later than one being saved: damaged, or of a course that was abandoned."""
_REPLACED = "replaced"  # folder of a step that is being saved again, until the new one is complete
_TEMPORARY = ".orbax-checkpoint-tmp"

Log = Callable[[str], None]


def clean_up(folder: Path, log: Log) -> None:
    """Create the folder, remove what interrupted saves left, and restore a step that was being replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder, log)
    for former in sorted((folder / _REPLACED).glob("*")):
        if not (folder / former.name).exists():
            log(f"warning: the save that was to replace checkpoint {former.name} was interrupted; kept the former one")
            former.rename(folder / former.name)
    remove_replaced(folder)


def remove_temporary(folder: Path, log: Log) -> None:
    """Remove unfinished saves. Threads of a failed save may still write for a moment after it was given up."""
    for entry in sorted(folder.glob(f"*{_TEMPORARY}*")):
        log(f"warning: {entry} is left of an interrupted save; removed")
        shutil.rmtree(entry, ignore_errors=True)


def move_to_replaced(folder: Path, step: int) -> None:
    """Move a step out of the way of a new save of the same step."""
    _move(folder / str(step), folder / _REPLACED / str(step))


def remove_replaced(folder: Path) -> None:
    """Remove the former checkpoint of a step, whose new one is complete."""
    shutil.rmtree(folder / _REPLACED, ignore_errors=True)


def set_aside(folder: Path, steps: Iterable[int]) -> None:
    """Move steps to `set_aside/`, beside those of the same number that are there."""
    for step in steps:
        targets = (folder / SET_ASIDE / f"{step}{end}" for end in ("", *(f"-{n}" for n in range(2, 1000))))
        _move(folder / str(step), next(target for target in targets if not target.exists()))


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
