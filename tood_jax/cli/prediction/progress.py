"""Progress of a job: a bar on a terminal, otherwise a line from time to time."""

import math
import sys
import time

from tqdm import tqdm

from tood_jax.untrusted.terminal import print_warning

_SECONDS = 30.0  # between two lines


class Progress:
    """Shows how many images are done, images per second and the time left.

    Args:
        total: number of images; None if it is not known.
        is_shown: whether to show anything.
        unit: what is counted.
    """

    def __init__(self, total: int | None, is_shown: bool, unit: str = "images"):
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=f" {unit}", leave=False, disable=not (is_shown and on_terminal), delay=0.5)
        self._writes_lines = is_shown and not on_terminal
        self._total, self._unit = total, unit
        self._first: int | None = None
        self._start = self._shown = self._last = time.monotonic()
        self._done = 0

    def update(self, done: int) -> None:
        """Show that `done` images are done; the speed counts from the first call."""
        if self._first is None:
            self._first, self._start = done, time.monotonic()
            self._bar.initial = self._bar.n = done
        self._bar.update(done - self._bar.n)
        self._done, self._last = done, time.monotonic()
        now = self._last
        if self._writes_lines and now > self._shown + _SECONDS and done > self._first:
            self._shown = now
            speed = (done - self._first) / (now - self._start)
            if self._total is None:
                print_warning(f"{done:,} {self._unit}, {speed:.1f} {self._unit}/s")
                return
            left = tqdm.format_interval(max(0, self._total - done) / speed)
            print_warning(f"{done:,} of {self._total:,} {self._unit}, {speed:.1f} {self._unit}/s, {left} left")

    @property
    def speed(self) -> float:
        """Images per second so far; NaN before there are two."""
        seconds = self._last - self._start
        return (self._done - (self._first or 0)) / seconds if seconds > 0 else math.nan

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
