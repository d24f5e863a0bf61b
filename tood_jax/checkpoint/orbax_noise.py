"""Silence what Orbax and TensorStore print about a failure besides raising it; the store logs it in one sentence."""

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
    """Drop Orbax's logged tracebacks, which are hundreds of lines per failure; programs call it at their start.

    It adds filters to the loggers "absl" and "asyncio" and replaces `sys.unraisablehook`.
    """
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)
        logging.getLogger("asyncio").addFilter(_not_of_orbax_tasks)  # it logs each of several failed arrays
        sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)


def _report_unraisable(former: Callable[[Any], None], unraisable: Any) -> None:
    """Ignore the errors of TensorStore's threads that use an event loop which Orbax has closed after a failure."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        former(unraisable)
