"""A monotonic clock for Orbax.

Orbax measures how long a save takes by the wall clock. When that is set forward during a save (by NTP after a machine
was suspended, for example), the save "times out" and nothing is saved.
"""

import sys
import time
from typing import Any


class _MonotonicTime:
    """The module `time` with a monotonic `time()`."""

    time = staticmethod(time.monotonic)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


_CLOCK = _MonotonicTime()


def use_monotonic_clock() -> None:
    """Make Orbax's durations monotonic, in the modules imported so far; to be called before each use."""
    for name, module in list(sys.modules.items()):
        if name.startswith("orbax.checkpoint") and getattr(module, "time", None) is time:
            module.time = _CLOCK  # type: ignore[attr-defined]
