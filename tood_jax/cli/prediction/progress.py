"""Progress of a job: a bar on a terminal, otherwise a line from time to time."""

import sys
import time

from tqdm import tqdm

from tood_jax.untrusted.terminal import print_warning

_SECONDS = 30.0  # between two lines


class Progress:
    """Shows how many images are done, images per second and the time left.

    Args:
        total: number of images.
        is_shown: whether to show anything.
    """

    def __init__(self, total: int, is_shown: bool):
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=" images", leave=False, disable=not (is_shown and on_terminal), delay=0.5)
        self._writes_lines = is_shown and not on_terminal
        self._total = total
        self._first: int | None = None
        self._start = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        """Show that `done` images are done; the speed counts from the first call."""
        if self._first is None:
            self._first, self._start = done, time.monotonic()
            self._bar.initial = self._bar.n = done
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._writes_lines and now > self._shown + _SECONDS and done > self._first:
            self._shown = now
            speed = (done - self._first) / (now - self._start)
            left = tqdm.format_interval((self._total - done) / speed)
            print_warning(f"{done:,} of {self._total:,} images, {speed:.1f} images/s, {left} left")

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
