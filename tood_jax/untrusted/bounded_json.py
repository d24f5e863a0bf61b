"""Read untrusted JSON: with bounds, and with one type of error.

`parse_json` returns a tree of plain values; `as_number`, `as_integer` and `as_text` convert single values of it. They
return None for a value of another kind, so that the caller can name the file and the field.
"""

import json
import math
from typing import Any, NoReturn

from tood_jax.untrusted.file_kinds import unexpected_kind

MAX_BYTES = 4 << 30  # COCO's largest file has 0.5 GB
MAX_NUMBER = 1e15  # larger than any number of pixels, id or count
MAX_TEXT = 4096  # characters


class JsonError(ValueError):
    """Invalid JSON; the message completes a sentence that begins with the file: "is not JSON (…)"."""


def parse_json(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        data: the content of the file.
        max_bytes: largest accepted length.

    Raises:
        JsonError: not JSON, too long, nested too deeply, or with NaN or Infinity, which JSON does not have.
    """
    if len(data) > max_bytes:
        raise JsonError(f"has {len(data):,} bytes, more than the {max_bytes:,} that are read")
    if not data.strip():
        raise JsonError("is empty, not JSON")
    kind = _other_kind(data)
    if kind:
        raise JsonError(f"is {kind}, not JSON")
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    except JsonError:
        raise
    except ValueError as error:  # also UnicodeDecodeError, and numbers with thousands of digits
        raise JsonError(f"is not JSON ({str(error)[:200]})") from None


def as_number(value: Any, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float | None:
    """Return a finite number of JSON within low … high as a float, or None; true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if low <= value <= high else None  # compared first, because the conversion can overflow


def as_integer(value: Any, low: int = -(1 << 63), high: int = (1 << 64) - 1) -> int | None:
    """Return an integer of JSON (also one written as 3.0) within low … high, or None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if low <= value <= high else None


def as_text(value: Any, max_length: int = MAX_TEXT) -> str | None:
    """Return a text of JSON of at most `max_length` characters, or None, also for lone surrogates."""
    if not isinstance(value, str) or len(value) > max_length:
        return None
    return None if any("\ud800" <= character <= "\udfff" for character in value) else value


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"holds {name}, which JSON does not have")


def _other_kind(data: bytes | str) -> str:
    """Describe a file of another kind by its first bytes; "" if it may be JSON."""
    start = data[:256] if isinstance(data, bytes) else data[:256].encode(errors="replace")
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        return "a compressed archive (unpack it first)"
    return unexpected_kind(start)
