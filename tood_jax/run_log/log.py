"""Log of a run: all text, numbers and pictures that it writes. The run's folder holds

train.log                  the text, each line with its local time
metrics.jsonl              {"step", "kind", "time", …} per line, strict JSON
metrics.jsonl.discarded    lines that were removed when a run resumed from an earlier step
tensorboard/…              the same numbers, and pictures, as the other loggers of train.loggers get them (loggers.py)
pictures/STEP_NAME.png
goodput.jsonl              how the time was spent (goodput.py)

A full disk never ends a run: it is reported once, and the lines wait in memory for free space (pictures are lost).
"""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from tood_jax.files import write_atomically
from tood_jax.run_log.appender import Appender
from tood_jax.run_log.live_bar import LiveBar
from tood_jax.run_log.logger import Picture
from tood_jax.run_log.loggers import Loggers
from tood_jax.run_log.strict_json import json_safe
from tood_jax.untrusted.printable import printable_lines


class RunLog:
    """Text, numbers and pictures of one run.

    Args:
        folder: of the run, created if missing.
        log_every_steps: steps between the plain progress lines.
        is_active: False makes every method do nothing (all processes of a run except the primary).
        loggers: what else gets the numbers and pictures, by the names of loggers.py.
        name: of the run, for these loggers.
        config: of the run, in plain values, for these loggers.
    """

    def __init__(
        self,
        folder: str | Path,
        log_every_steps: int = 50,
        is_active: bool = True,
        loggers: Sequence[str] = ("tensorboard",),
        name: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        self._every = max(1, log_every_steps)
        self._is_active = is_active
        self._bar = LiveBar()
        self._loggers = Loggers(loggers, self.folder, name or self.folder.name, config or {}, self.info)
        self._metrics_file = self.folder / "metrics.jsonl"
        self._text = Appender(self.folder / "train.log", self.info)
        self._metrics = Appender(self._metrics_file, self.info)
        if is_active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._keep_lines(None, True)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self, text: str) -> None:
        """Write a text to the terminal and to train.log."""
        if not self._is_active:
            return
        self._write_text(text)
        self._bar.print_above(text)

    def warn(self, text: str) -> None:
        """Write a warning to the terminal and to train.log."""
        self.info(f"warning: {text}")

    def metrics(self, step: int, values: Mapping[str, Any], kind: Literal["train", "eval"] = "train") -> None:
        """Write a line of metrics.jsonl, and each number to the loggers as kind/name (nested names joined by "/").

        Values may be numbers, 0-d arrays, strings, lists and dicts; NaN and infinities are written as strings.
        """
        if not self._is_active:
            return
        values = json_safe(values)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"step": int(step), "kind": kind, "time": now, **values}, allow_nan=False)
        self._metrics.append(f"{line}\n".encode())
        self._loggers.scalars(int(step), dict(_numbers_in(values, kind)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers to the loggers alone, by tag."""
        if self._is_active:
            self._loggers.scalars(int(step), dict(values))

    def appender(self, name: str) -> Appender | None:
        """Return an appender for another file of the run's folder; None where nothing is to be written."""
        return Appender(self.folder / name, self.info) if self._is_active else None

    def picture(self, step: int, name: str, picture: np.ndarray) -> Path | None:
        """Write a picture to the loggers and to pictures/STEP_NAME.png.

        Args:
            name: with the ending .jpg, the file is a JPEG.
            picture: [h, w, 3] uint8 RGB.

        Returns:
            The file, or None where it was not written.

        Raises:
            ValueError: another shape or dtype.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"a picture is uint8 [h, w, 3], not {picture.dtype} {list(picture.shape)}")
        if not self._is_active:
            return None
        stem, suffix = (name[:-4], ".jpg") if name.endswith(".jpg") else (name.removesuffix(".png"), ".png")
        encoded = _encode(suffix, picture)
        if not encoded:
            self.warn(f"a picture of {picture.shape[1]}×{picture.shape[0]} pixels can't be written as {suffix}")
            return None
        file = self.folder / "pictures" / f"{step:07d}_{stem.replace('/', '_')}{suffix}"
        self._loggers.picture(int(step), stem, Picture(picture, encoded, suffix))
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(encoded)
        except OSError as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self.warn(f"{file} can't be written ({error.strerror or error})")
            return None
        return file

    def progress(self, step: int, total: int, fields: Mapping[str, float | str]) -> None:
        """Write a plain line of the progress every `log_every_steps` and at the end.

        It may be called at every step. `fields` are shown in their order, floats with four digits.
        """
        if self._is_active and (step % self._every == 0 or step == total):
            text = "  ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in fields.items())
            self.info(f"step {step}/{total}  {text}")

    def live_step(self, step: int, total: int, loss: float, batch_size: int, seconds: float) -> None:
        """Show a step that is done on the bar of a terminal, as LiveBar.step; it is written to no file."""
        if self._is_active:
            self._bar.step(step, total, loss, batch_size, seconds)

    def live_evaluation(self, done: int, total: int) -> None:
        """Show how many batches of an evaluation are done on the bar of a terminal."""
        if self._is_active:
            self._bar.evaluation(done, total)

    def resume_from(self, step: int, evaluated: bool = True) -> None:
        """Drop what was logged after `step` steps; to be called before the first metrics of a run that resumes there.

        Lines of later steps, which will be written again, move to metrics.jsonl.discarded; TensorBoard drops them too,
        and the other loggers have them twice.
        With `evaluated` False this includes an evaluation after exactly `step` steps.
        """
        if not self._is_active:
            return
        moved = self._keep_lines(step, evaluated)
        if evaluated:
            self._loggers.resume_from(step + 1, [])
        else:  # TensorBoard drops whole steps, so the other numbers of this step are written again
            self._loggers.resume_from(step, self._scalars_of(step))
        if moved:
            self.info(f"moved {moved} lines of later steps from metrics.jsonl to metrics.jsonl.discarded")

    def close(self) -> None:
        """End the live line and finish the loggers; nothing is logged afterwards."""
        if not self._is_active:
            return
        self._bar.close()
        self._loggers.close()
        self._is_active = False

    def _write_text(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = printable_lines(text).split("\n")
        self._text.append("".join(f"{stamp}  {line}\n" for line in lines).encode())

    def _scalars_of(self, step: int) -> list[tuple[int, dict[str, float]]]:
        lines = self._metrics_file.read_bytes().splitlines() if self._metrics_file.exists() else []
        rows = [row for row in map(json.loads, lines) if row["step"] == step]
        return [
            (step, dict(_numbers_in({k: v for k, v in row.items() if k not in ("step", "kind", "time")}, row["kind"])))
            for row in rows
        ]

    def _keep_lines(self, last_step: int | None, evaluated: bool) -> int:
        """Move the lines that are not `_is_kept` to the discarded file, and return how many."""
        if not self._metrics_file.exists():
            return 0
        lines = self._metrics_file.read_bytes().splitlines(keepends=True)
        good = [line for line in lines if _is_kept(line, last_step, evaluated)]
        moved = [line for line in lines if not _is_kept(line, last_step, evaluated)]
        is_ended = not good or good[-1].endswith(b"\n")
        if not moved and is_ended:
            return 0
        if moved:
            with open(self.folder / "metrics.jsonl.discarded", "ab") as out:
                out.writelines(line.rstrip(b"\n") + b"\n" for line in moved)
        write_atomically(self._metrics_file, b"".join(line.rstrip(b"\n") + b"\n" for line in good))
        return len(moved)


def _encode(suffix: str, picture: np.ndarray) -> bytes:
    """Return the bytes of the file; b"" if the picture does not fit the format."""
    try:
        is_encoded, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        return b""
    return data.tobytes() if is_encoded else b""


def _is_kept(line: bytes, last_step: int | None, evaluated: bool) -> bool:
    """Return whether a line is complete and of a step up to `last_step`; its evaluation only if `evaluated`."""
    try:
        row = json.loads(line)
        step, kind = row["step"], row.get("kind")
        return last_step is None or step < last_step or (step == last_step and (evaluated or kind != "eval"))
    except (ValueError, KeyError, TypeError, AttributeError):  # incomplete: the process was killed while it wrote
        return False


def _numbers_in(values: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            found += _numbers_in(value, name)
        elif isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
            found.append((name, float(value)))
    return found
