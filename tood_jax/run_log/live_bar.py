"""The bar of a run at the bottom of a terminal: steps, loss, images/s, time left, and progress of an evaluation."""

import contextlib
import sys
from collections import deque
from typing import Any

from tqdm import tqdm

from tood_jax.run_log.rates import format_eta, images_per_second
from tood_jax.untrusted.terminal import print_line

_SHOWN_STEPS = 20  # whose mean speed is shown


def is_terminal() -> bool:
    """Return whether standard output and standard error are both a terminal."""
    try:
        return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    except ValueError:  # closed
        return False


class LiveBar:
    """A bar on standard error; nothing is drawn where there is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._text = ""
        self._times: deque[tuple[int, float]] = deque(maxlen=_SHOWN_STEPS + 1)  # (step, seconds)

    def step(self, step: int, total: int, loss: float, batch_size: int, seconds: float) -> None:
        """Show a step that is done.

        Args:
            seconds: of all steps so far since some moment, without compiling, evaluating and saving.
        """
        if not is_terminal():
            return
        if self._times and step <= self._times[-1][0]:
            self._times.clear()
        self._times.append((step, seconds))
        steps, spent = step - self._times[0][0], seconds - self._times[0][1]
        self._text = f"loss {loss:.4g}"
        if steps and spent > 0:
            left = format_eta(total - step, spent / steps)
            self._text += f"  {images_per_second(steps * batch_size, spent):.1f} images/s  {left} left"
        if self._bar is None or self._bar.total != total:
            self.close()
            layout = "{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}  {desc}"
            self._bar = tqdm(total=total, initial=step, bar_format=layout, dynamic_ncols=True, leave=False)
        with contextlib.suppress(OSError, ValueError):
            self._bar.set_description_str(self._text, refresh=False)
            self._bar.update(step - self._bar.n)
            if step >= total:
                self._bar.refresh()

    def evaluation(self, done: int, total: int) -> None:
        """Show how many batches of an evaluation are done; with the last, the text of the last step is back."""
        if self._bar is not None:
            text = self._text if done >= total else f"evaluating, batch {done + 1} of {total}"
            with contextlib.suppress(OSError, ValueError):
                self._bar.set_description_str(text)

    def print_above(self, text: str) -> None:
        """Print lines on standard output; the bar stays below them."""
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.clear()
        print_line(text)
        with contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None
