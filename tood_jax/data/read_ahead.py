"""Call a function on a stream of items in threads, ahead of the consumer and in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from tood_jax.data.errors import StalledError

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # items per thread


def read_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    timeout_seconds: float = 0,
    describe: Callable[[Item], object] = str,
) -> Iterator[Result]:
    """Yield function(item) for each item, in their order; a bounded number of results is kept in memory.

    Args:
        items: taken one by one in the consumer's thread.
        threads: number of threads; they end with the iterator, and do not keep the program alive.
        timeout_seconds: longest time to wait for one result; 0 means no limit.
        describe: names an item in the message of a timeout.

    Raises:
        StalledError: a result did not come in time.
        Exception: what `function` raises, at the place of its item.
    """
    requests: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
    for _ in range(threads):
        threading.Thread(target=_serve, args=(function, requests), daemon=True, name="read ahead").start()
    waiting: deque[tuple[Item, Future[Result]]] = deque()

    def take() -> Result:
        item, future = waiting.popleft()
        try:
            return future.result(timeout_seconds or None)
        except TimeoutError:
            if future.done():  # an error of the function
                raise
            raise StalledError(
                f"{describe(item)} was not read within {timeout_seconds:g} s (data.timeout_seconds): check whether "
                "that file can be read at all (the disk or network share may hang), remove it, or raise the limit (0 "
                "means no limit)."
            ) from None

    try:
        for item in items:
            waiting.append((item, Future()))
            requests.put(waiting[-1])
            if len(waiting) > _AHEAD * threads:
                yield take()
        while waiting:
            yield take()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in range(threads):
            requests.put(None)


def _serve(
    function: Callable[[Item], Result], requests: "queue.SimpleQueue[tuple[Item, Future[Result]] | None]"
) -> None:
    while (request := requests.get()) is not None:
        item, future = request
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:
            future.set_exception(error)
