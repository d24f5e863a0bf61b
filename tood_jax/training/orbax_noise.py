"""What Orbax and TensorStore say of a failure besides raising it; the store says it in one sentence."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_of_orbax_tasks(record: logging.LogRecord) -> bool:
    return not ("never retrieved" in (text := record.getMessage()) and "orbax" in text)


def silence_orbax() -> None:
    """Orbax logs each failure as hundreds of lines of traceback; every one is said here in one."""
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_not_of_orbax_tasks)  # of several arrays that failed, it tells of each
        sys.unraisablehook = functools.partial(_hear_unraisable, sys.unraisablehook)


def _hear_unraisable(former: Callable[[Any], None], unraisable: Any) -> None:
    """TensorStore's threads speak to an event loop that Orbax has closed after a failure: nobody needs to hear that."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        former(unraisable)
