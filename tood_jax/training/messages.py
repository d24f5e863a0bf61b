"""What processes tell each other on the host: small JSON values, through the key-value store of JAX's coordinator.

Not through the devices: a process may well wait for minutes here (while the first one computes AP, say), and a
collective would give up sooner. A process that dies ends the wait, see processes.py. All processes must call each of
these in the same order, from their main thread. In a run of one process nothing is sent.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the only way to the coordinator's store; Orbax takes it too

T = TypeVar("T")
_PATIENCE = 24 * 3600 * 1000  # milliseconds; the heartbeat notices a lost process long before
_numbers = itertools.count()


def is_first() -> bool:
    """Whether this is the process that logs, draws and writes results."""
    return jax.process_index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make()` returns in the first process (JSON: tuples arrive as lists), told to all; the others don't call it.

    An error that it raises there is raised by all, as an OSError if it is one and else as a RuntimeError.
    """
    if jax.process_count() == 1:
        return make()
    key = f"tood_jax/{next(_numbers)}"
    if is_first():
        try:
            text = json.dumps({"value": make()})
        except Exception as error:
            _set(key, json.dumps({"error": str(error) or type(error).__name__, "os": isinstance(error, OSError)}))
            raise
        _set(key, text)
    else:
        text = _get(key)
    told: dict[str, Any] = json.loads(text)
    if "error" in told:
        raise (OSError if told["os"] else RuntimeError)(f"in the first process: {told['error']}")
    return told["value"]


def from_all(value: T) -> list[T]:
    """The JSON value of each process, in their order; nobody goes on before all have come here."""
    if jax.process_count() == 1:
        return [value]
    key = f"tood_jax/{next(_numbers)}"
    _set(f"{key}/{jax.process_index()}", json.dumps(value))
    return [json.loads(_get(f"{key}/{index}")) for index in range(jax.process_count())]


def _set(key: str, text: str) -> None:
    store().key_value_set(key, text)


def _get(key: str) -> str:
    return store().blocking_key_value_get(key, _PATIENCE)


def store() -> Any:
    """The coordinator's key-value store; None in a run of one process."""
    return distributed.global_state.client
