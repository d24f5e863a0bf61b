"""The run's log: the one place where a run speaks. In the run's folder lie

train.log                  what was said, each line with its local time
metrics.jsonl              {"step", "kind", "time", …} a line, strict JSON
metrics.jsonl.discarded    lines cut off when a run resumed from an earlier step
tensorboard/…              the same numbers, and pictures
pictures/STEP_NAME.png
goodput.jsonl              where the time went (goodput.py)

A full disk never ends a run: the trouble is said once, and what can't be written waits for room (pictures are lost).
"""

import contextlib
import json
import math
import numbers
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import psutil
from tqdm import tqdm

from tood_jax.training.appending import Appender

_GB = 1e9  # bytes


class RunLog:
    """Text, numbers and pictures of one run.

    Args:
      folder: the run's folder, created if missing.
      log_every_steps: steps between the plain progress lines (train.log, and the terminal where it is no TTY).
      speaks: False makes every method do nothing (all processes of a run but the first).
    """

    def __init__(self, folder: str | Path, log_every_steps: int = 50, speaks: bool = True):
        self.folder = Path(folder)
        self._every = max(1, log_every_steps)
        self._speaks = speaks
        self._bar: Any = None
        self._events: Any = None
        self._purge_step: int | None = None
        self._metrics_file = self.folder / "metrics.jsonl"
        self._text = Appender(self.folder / "train.log", self.say)
        self._metrics = Appender(self._metrics_file, self.say)
        if speaks:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._keep_lines(None, True)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """To the terminal and train.log."""
        if not self._speaks:
            return
        if self._bar is not None:
            tqdm.write(text, file=sys.stderr)  # lifts the live line
        else:
            _print(text)
        self._write_text(text)

    def metrics(self, step: int, values: Mapping[str, Any], kind: Literal["train", "eval"] = "train") -> None:
        """One line of metrics.jsonl, and each number to TensorBoard as kind/name (nested names joined by "/").

        Values may be numbers, 0-d arrays, strings, lists and dicts; NaN and infinities are written as strings.
        """
        if not self._speaks:
            return
        values = json_safe(values)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"step": int(step), "kind": kind, "time": now, **values}, allow_nan=False)
        self._metrics.append(f"{line}\n".encode())
        self._tensorboard().scalars(int(step), dict(_numbers_in(values, kind)))

    def appender(self, name: str) -> Appender | None:
        """For another file of the run's folder that grows line by line; None where nothing is to be written."""
        return Appender(self.folder / name, self.say) if self._speaks else None

    def picture(self, step: int, name: str, picture: np.ndarray) -> Path | None:
        """To TensorBoard and pictures/STEP_NAME.png; `picture` is [h, w, 3] uint8 RGB. Returns the file, if written.

        A name that ends in .jpg makes a JPEG file. Raises ValueError for another shape or dtype.
        """
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"a picture is uint8 [h, w, 3], not {picture.dtype} {list(picture.shape)}")
        if not self._speaks:
            return None
        stem, suffix = (name[:-4], ".jpg") if name.endswith(".jpg") else (name.removesuffix(".png"), ".png")
        encoded = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        file = self.folder / "pictures" / f"{step:07d}_{stem.replace('/', '_')}{suffix}"
        self._tensorboard().picture(int(step), stem, encoded, picture.shape[0], picture.shape[1])
        try:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(encoded)
        except OSError as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self.say(f"warning: {file} can't be written ({error.strerror or error})")
            return None
        return file

    def progress(self, step: int, total: int, fields: Mapping[str, float | str]) -> None:
        """Where the run is: one live line where stderr is a TTY; a plain line every `log_every_steps` and at the end.

        Cheap enough for every step. `fields` are shown in their order, floats with four digits.
        """
        if not self._speaks:
            return
        text = "  ".join(f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for name, v in fields.items())
        is_live = sys.stderr.isatty()
        if is_live:
            if self._bar is None or self._bar.total != total:
                self._close_bar()
                self._bar = tqdm(total=total, bar_format="{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {desc}")
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        if step % self._every == 0 or step == total:
            line = f"step {step}/{total}  {text}"
            if not is_live:
                _print(line)
            self._write_text(line)
        if step >= total:
            self._close_bar()

    def resume_from(self, step: int, evaluated: bool = True) -> None:
        """Call it before the first metrics of a run that goes on after `step` steps.

        Lines of later steps, which will be written anew, move to metrics.jsonl.discarded; TensorBoard drops them too.
        With `evaluated` False the same goes for an evaluation after exactly `step` steps.
        """
        if not self._speaks:
            return
        moved = self._keep_lines(step, evaluated)
        self._purge_step = step + 1
        if moved:
            self.say(f"moved {moved} lines of later steps from metrics.jsonl to metrics.jsonl.discarded")

    def close(self) -> None:
        """Ends the live line; nothing is logged after it."""
        if not self._speaks:
            return
        self._close_bar()
        self._speaks = False

    def _write_text(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self._text.append("".join(f"{stamp}  {line}\n" for line in text.splitlines() or [""]).encode())

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _tensorboard(self) -> Any:
        if self._events is None:
            from tood_jax.training.tensorboard import EventFile  # a second to import, and not every run logs numbers

            self._events = EventFile(self.folder / "tensorboard", self._purge_step, self.say)
        return self._events

    def _keep_lines(self, last_step: int | None, evaluated: bool) -> int:
        """Moves torn lines, and those that `_is_kept` doesn't want, to the discarded file; returns how many."""
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
        fresh = self._metrics_file.with_name("metrics.jsonl.new")
        with open(fresh, "wb") as out:
            out.writelines(line.rstrip(b"\n") + b"\n" for line in good)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, self._metrics_file)
        return len(moved)


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be a file on that full disk, or gone
        print(text, flush=True)


def _is_kept(line: bytes, last_step: int | None, evaluated: bool) -> bool:
    """Is it a whole line of a step up to `last_step`, but no evaluation after that very step unless `evaluated`?"""
    try:
        row = json.loads(line)
        step, kind = row["step"], row.get("kind")
        return last_step is None or step < last_step or (step == last_step and (evaluated or kind != "eval"))
    except (ValueError, KeyError, TypeError, AttributeError):  # torn by a kill in the middle of a write
        return False


def json_safe(value: Any) -> Any:
    """The value as strict JSON holds it: arrays as numbers or lists, NaN and infinities as "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): json_safe(inner) for key, inner in value.items()}
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, list | tuple):
        return [json_safe(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy or JAX, any number of axes
        return json_safe(value.tolist())
    raise TypeError(f"a {type(value).__name__} can't be written as JSON: {value!r}")


def _numbers_in(values: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            found += _numbers_in(value, name)
        elif isinstance(value, int | float) or value in ("nan", "inf", "-inf"):
            found.append((name, float(value)))
    return found


def images_per_second(images: int, seconds: float) -> float:
    """Rate over a stretch of time; 0 where no time has passed."""
    return images / seconds if seconds > 0 else 0.0


def format_eta(steps_left: int, seconds_per_step: float) -> str:
    """Time to go as "2d 03:04:05" or "03:04:05"; "?" where the pace isn't known yet."""
    if not (math.isfinite(seconds_per_step) and seconds_per_step > 0):
        return "00:00:00" if steps_left <= 0 else "?"
    seconds = round(max(0, steps_left) * seconds_per_step)
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock


def memory_report() -> dict[str, float]:
    """Memory in 10⁹ bytes: "device_peak_gb" of the fullest device, or "process_gb", resident now, on the CPU."""
    import jax  # here, so that the log itself is free of it

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return {"device_peak_gb": max(peaks) / _GB}
    return {"process_gb": psutil.Process().memory_info().rss / _GB}
