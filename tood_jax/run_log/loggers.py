"""The loggers of a run by train.loggers. None of them ever stops the run, or lets it wait.

A new logger is a module with a function `open_logger` and one entry of LOGGERS.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tood_jax.config import ConfigError
from tood_jax.files import write_atomically
from tood_jax.run_log.background_logger import BackgroundLogger
from tood_jax.run_log.logger import Logger, LoggerStart, Picture
from tood_jax.untrusted.bounded_json import JsonError, as_text, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular

_MAX_ID_FILE = 10_000  # bytes
Scalars = dict[str, float]


class LoggerKind(NamedTuple):
    """Where a logger comes from."""

    module: str  # with `open_logger`, from a LoggerStart to a Logger
    package: str  # that it imports
    in_background: bool = True  # in a thread of its own, because it may wait for a server


LOGGERS = {
    "tensorboard": LoggerKind("tood_jax.run_log.tensorboard", "tensorboardX", in_background=False),
    "wandb": LoggerKind("tood_jax.run_log.wandb_logger", "wandb"),
    "mlflow": LoggerKind("tood_jax.run_log.mlflow_logger", "mlflow"),
    "trackio": LoggerKind("tood_jax.run_log.trackio_logger", "trackio"),
}
"""By their names in `train.loggers`."""


def check_loggers(names: Iterable[str]) -> None:
    """Raise ConfigError if the package of a logger is not installed."""
    for name in names:
        spec = importlib.util.find_spec(LOGGERS[name].package)
        if spec is None or spec.origin is None:  # or only a folder of this name, such as W&B's own
            raise ConfigError(
                f"train.loggers: {name} needs the package {LOGGERS[name].package}: pip install 'tood_jax[{name}]', or "
                f"leave {name} out."
            )


class Loggers:
    """The loggers of one run; they open at the first number or picture.

    A logger that fails is warned of once, and gets nothing more from this start of the run.

    Args:
        names: of LOGGERS.
        folder: of the run.
        name: of the run.
        config: of the run, in plain values.
        log: writes a line to the log of the run.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, name: str, config: Mapping[str, Any], log: Callable[[str], None]
    ):
        self._names, self._folder, self._name, self._config, self._log = names, folder, name, config, log
        self._purge_step: int | None = None
        self._repeated: Sequence[tuple[int, Scalars]] = ()
        self._open: dict[str, Logger] | None = None

    def resume_from(self, purge_step: int, repeated: Sequence[tuple[int, Scalars]]) -> None:
        """Begin as LoggerStart says."""
        self._purge_step, self._repeated = purge_step, repeated

    def scalars(self, step: int, values: Scalars) -> None:
        """Add the numbers of one step, by tag."""
        self._to_all(lambda logger: logger.scalars(step, values))

    def picture(self, step: int, tag: str, picture: Picture) -> None:
        """Add a picture of one step."""
        self._to_all(lambda logger: logger.picture(step, tag, picture))

    def close(self) -> None:
        """Finish all loggers; those in the background do so at the same time."""
        for name, logger in [*(self._open or {}).items()]:
            if isinstance(logger, BackgroundLogger):
                self._attempt(name, logger.end)
        for name, logger in [*(self._open or {}).items()]:
            self._attempt(name, logger.close)
        self._open = {}

    def _to_all(self, add: Callable[[Logger], None]) -> None:
        if self._open is None:
            self._open = {}
            for name in self._names:
                self._attempt(name, partial(self._begin, name))
        for name, logger in [*self._open.items()]:
            self._attempt(name, partial(add, logger))

    def _begin(self, name: str) -> None:
        assert self._open is not None
        kind = LOGGERS[name]
        file = self._folder / "loggers" / f"{name}.json"
        start = LoggerStart(
            self._folder,
            self._name,
            self._config,
            self._purge_step,
            self._repeated,
            _read_run_id(file),
            partial(_write_run_id, file),
            self._log,
        )

        def begin(start: LoggerStart) -> Logger:
            return importlib.import_module(kind.module).open_logger(start)

        self._open[name] = BackgroundLogger(begin, start) if kind.in_background else begin(start)

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if self._open is not None:
                self._open.pop(name, None)
            reason = printable(error) or type(error).__name__
            self._log(
                f"warning: the logger {name} failed ({reason}) and gets no more numbers until the next start; "
                "metrics.jsonl has all of them"
            )


def _read_run_id(file: Path) -> str | None:
    try:
        values = parse_json(read_regular(file, _MAX_ID_FILE), _MAX_ID_FILE)
    except (OSError, JsonError):
        return None
    return as_text(values.get("run_id"), 200) if isinstance(values, dict) else None


def _write_run_id(file: Path, run_id: str) -> None:
    write_atomically(file, f"{json.dumps({'run_id': run_id})}\n".encode())
