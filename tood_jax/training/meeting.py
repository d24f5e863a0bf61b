"""Saves of many processes that fail together at once: one whose write fails tells those that wait for it.

Orbax's processes meet once each has written its part. One that couldn't write never comes, and the others would wait
for it for twenty minutes, and training with them.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax

from tood_jax.training.messages import store

_POLL = 500  # milliseconds between looks for a failure
_meetings = itertools.count()


class Meeting:
    """Where the processes' background threads wait for one another; one a checkpoint manager, made by all alike."""

    def __init__(self) -> None:
        self._key = f"tood_jax/meeting/{next(_meetings)}"
        self._numbers = itertools.count()

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Returns when all processes have come; Orbax's `barrier_sync_fn`.

        Raises OSError or RuntimeError when one has told of a failure, TimeoutError when time is up.
        """
        place, end = f"{self._key}/{next(self._numbers)}", time.monotonic() + timeout_ms / 1000
        store().key_value_set(f"{place}/{jax.process_index()}", key)
        for process in range(jax.process_count()):
            while not _is_there(f"{place}/{process}"):
                if told := store().key_value_dir_get(f"{self._key}/failed/"):
                    failure = json.loads(told[0][1])
                    raise (OSError if failure["os"] else RuntimeError)(failure["error"])
                if time.monotonic() > end:
                    raise TimeoutError(f"process {process} didn't come to {key}")

    def tell(self, error: Exception) -> None:
        """This process's part of a save has failed."""
        process = jax.process_index()
        told = {"error": f"in process {process}: {error}", "os": isinstance(error, OSError)}
        store().key_value_set(f"{self._key}/failed/{process}", json.dumps(told), allow_overwrite=True)

    def hears(self, handler: Any) -> Any:
        """The checkpoint handler, whose failures are told from now on."""
        save = handler.async_save

        async def async_save(*args: Any, **kwargs: Any) -> list[Any]:
            return [_Telling(one, self.tell) for one in await save(*args, **kwargs) or ()]

        handler.async_save = async_save  # of the object: Orbax finds what an item's type is by the handler's class
        return handler


class _Telling:
    """A write under way, as Orbax's `Future`."""

    def __init__(self, write: Any, tell: Callable[[Exception], None]):
        self._write, self._tell = write, tell

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._write.result(timeout=timeout)
        except Exception as error:
            self._tell(error)
            raise


def _is_there(key: str) -> bool:
    try:
        store().blocking_key_value_get(key, _POLL)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return False
        raise
    return True
