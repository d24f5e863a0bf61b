"""A barrier for Orbax at which all processes fail at once when one of them fails to write.

Orbax's processes wait for each other after each has written its part. One that could not write never arrives, and the
others would wait for it for twenty minutes, and training with them.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax

from tood_jax.distributed.host_sync import decode_error, encode_error, get_within, store

_POLL = 500  # milliseconds between two looks for a failure
_numbers = itertools.count()


class FailFastBarrier:
    """Barrier for the processes' background threads, one per checkpoint manager; all processes make it alike."""

    def __init__(self) -> None:
        self._prefix = f"tood_jax/barrier/{next(_numbers)}"
        self._calls = itertools.count()

    def wait(self, *, key: str, timeout_ms: int) -> None:
        """Return when all processes have arrived; Orbax's `barrier_sync_fn`.

        Raises:
            OSError, RuntimeError: a process has reported a failure.
            TimeoutError: a process did not arrive in time.
        """
        call = next(self._calls)
        end = time.monotonic() + timeout_ms / 1000
        store().key_value_set(self._key(call, jax.process_index()), key)
        for process in range(jax.process_count()):
            while get_within(self._key(call, process), _POLL) is None:
                self._raise_reported_failure()
                if time.monotonic() > end:
                    raise TimeoutError(f"process {process} did not arrive at {key}")
        if call:  # all processes are here, so none waits for a key of the call before
            store().key_value_delete(self._key(call - 1, jax.process_index()))

    def report(self, error: Exception) -> None:
        """Report to all processes that this one's part of a save has failed."""
        process = jax.process_index()
        message = encode_error(error)
        store().key_value_set(f"{self._prefix}/failed/{process}", json.dumps(message), allow_overwrite=True)

    def watch(self, handler: Any) -> Any:
        """Return the checkpoint handler, whose failures are reported from now on."""
        save = handler.async_save

        async def async_save(*args: Any, **kwargs: Any) -> list[Any]:
            return [_ReportingFuture(future, self.report) for future in await save(*args, **kwargs) or ()]

        handler.async_save = async_save  # of the object: Orbax finds an item's type by the handler's class
        return handler

    def delete_keys(self) -> None:
        """Delete the keys of all processes from the store; to be called when no process waits here any more."""
        store().key_value_delete(f"{self._prefix}/")

    def _key(self, call: int, process: int) -> str:
        return f"{self._prefix}/{call}/{process}"

    def _raise_reported_failure(self) -> None:
        for key, text in store().key_value_dir_get(f"{self._prefix}/failed/"):
            raise decode_error(json.loads(text), f"in process {key.rpartition('/')[2]}: ")


class _ReportingFuture:
    """A write under way, as Orbax's `Future`."""

    def __init__(self, future: Any, report: Callable[[Exception], None]):
        self._future, self._report = future, report

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout=timeout)
        except Exception as error:
            self._report(error)
            raise
