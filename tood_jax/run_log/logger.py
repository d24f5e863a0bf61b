"""What a logger of a run is: something that numbers and pictures of the run are also written to."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tood_jax.untrusted.printable import printable


class Picture(NamedTuple):
    """A picture and its file."""

    pixels: np.ndarray  # [h, w, 3] uint8 RGB
    encoded: bytes  # the file
    suffix: str  # ".png" or ".jpg"


class LoggerStart(NamedTuple):
    """What a logger begins with.

    `run_id` is what an earlier start of the same run gave to `keep_run_id`; None at the first start.
    """

    folder: Path  # of the run
    name: str  # of the run
    config: Mapping[str, Any]  # of the run, in plain values
    purge_step: int | None  # this step and later ones are logged again; None: nothing is
    repeated: Sequence[tuple[int, dict[str, float]]]  # numbers of `purge_step` that are not
    run_id: str | None
    keep_run_id: Callable[[str], None]
    log: Callable[[str], None]  # writes a line to the log of the run


class Logger(Protocol):
    """A logger; every method may raise any exception."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of one step, by tag, such as train/loss."""

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step."""

    def close(self) -> None:
        """Finish what was begun; nothing is added afterwards."""


def clean_tag(tag: str) -> str:
    """Return a tag of bounded length, in the letters that all loggers allow."""
    return printable(re.sub(r"[^-/\w.]", "_", tag, flags=re.ASCII), 250)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of nested groups by their full names (`train.seed`)."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= flat_config(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return fields
