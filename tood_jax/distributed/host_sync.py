"""Exchange small JSON values between the processes on the host, through the key-value store of JAX's coordinator.

The devices are not used: a process may have to wait for minutes here (while the primary process computes AP, for
example), and a collective gives up sooner. The wait ends when a process dies (process_group.py), at a second SIGTERM
(signals.py) and after a time limit. All processes must call these functions in the same order, from their main thread.
In a run of one process nothing is sent.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the only access to the coordinator's store; Orbax uses it too

from tood_jax.distributed.signals import waiting_for_others

T = TypeVar("T")
LIMIT = 2 * 3600.0  # seconds; the longest wait is for the primary process, which computes AP
_LEAVE_SECONDS = 5.0
_POLL = 1000  # milliseconds; Python handles signals only between two polls
_numbers = itertools.count()
_own_keys: list[str] = []  # set by this process and not deleted yet


def is_primary() -> bool:
    """Return whether this is the primary process, which logs, draws and writes results."""
    return jax.process_index() == 0


def broadcast_json(make: Callable[[], T]) -> T:
    """Return in all processes what `make()` returns in the primary process; only that one calls it.

    The value travels as JSON: tuples arrive as lists.

    Raises:
        OSError, RuntimeError: in all processes, where `make` raises an OSError or any other error.
    """
    if jax.process_count() == 1:
        return make()
    key = f"tood_jax/{next(_numbers)}"
    if is_primary():
        try:
            text = json.dumps({"value": make()})
        except Exception as error:
            _set(key, json.dumps(encode_error(error)))
            raise
        _set(key, text)
    else:
        text = _get(key, 0)
    message: dict[str, Any] = json.loads(text)
    if "error" in message:
        raise decode_error(message, "in the primary process: ")
    return message["value"]


def run_on_primary(act: Callable[[], object]) -> None:
    """Call `act` in the primary process; the others wait, and fail if it fails."""

    def call() -> None:
        act()

    broadcast_json(call)


def gather_json(value: T) -> list[T]:
    """Return the JSON value of each process, in their order; no process returns before all have called it."""
    if jax.process_count() == 1:
        return [value]
    former = list(_own_keys)
    _own_keys.clear()
    key = f"tood_jax/{next(_numbers)}"
    _set(f"{key}/{jax.process_index()}", json.dumps(value))
    values = [json.loads(_get(f"{key}/{index}", index)) for index in range(jax.process_count())]
    for own_key in former:  # all processes are here, so all have read the keys before
        store().key_value_delete(own_key)
    return values


def leave_last() -> None:
    """Return in the primary process, which keeps the store, after the others have returned; it waits 5 s for them.

    All processes call it before they end with the same error; otherwise the others would only see that the primary
    process is gone.
    """
    if jax.process_count() == 1:
        return
    key = f"tood_jax/{next(_numbers)}"
    if not is_primary():
        _set(f"{key}/{jax.process_index()}", "left")
        return
    end = time.monotonic() + _LEAVE_SECONDS
    for index in range(1, jax.process_count()):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            milliseconds = max(1, round(1000 * (end - time.monotonic())))
            store().blocking_key_value_get(f"{key}/{index}", milliseconds)


def encode_error(error: Exception) -> dict[str, Any]:
    """Return an error as JSON, for other processes."""
    return {"error": str(error) or type(error).__name__, "os": isinstance(error, OSError)}


def decode_error(message: dict[str, Any], prefix: str) -> Exception:
    """Return the error of `encode_error`: an OSError if it was one, otherwise a RuntimeError."""
    return (OSError if message["os"] else RuntimeError)(f"{prefix}{message['error']}")


def store() -> Any:
    """Return the client of the coordinator's key-value store; None in a run of one process."""
    return distributed.global_state.client


def _set(key: str, text: str) -> None:
    _own_keys.append(key)
    store().key_value_set(key, text)


def _get(key: str, process: int) -> str:
    """Wait for a key that a process sets. Raises TimeoutError."""
    end = time.monotonic() + LIMIT
    with waiting_for_others():
        while time.monotonic() < end:
            text = get_within(key, _POLL)
            if text is not None:
                return text
    raise TimeoutError(
        f"Process {process} did not arrive within {LIMIT / 3600:g} hours where the others wait: see its last messages, "
        "and start the run again."
    )


def get_within(key: str, milliseconds: int) -> str | None:
    """Return the value of a key of the store, or None if no process sets it within this time."""
    try:
        value: str = store().blocking_key_value_get(key, milliseconds)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return None
    return value
