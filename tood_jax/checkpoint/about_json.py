"""Check the content of about.json. A checkpoint may come from a stranger, and its checksum is no signature."""

import json
import math
import zlib
from collections.abc import Callable
from typing import Any

from tood_jax.checkpoint.checksums import Table
from tood_jax.untrusted.bounded_json import JsonError, as_integer, as_text, parse_json

MAX_ABOUT_BYTES = 256 << 20
_MAX_LEAVES = 100_000
_MAX_NUMBERS = 1 << 32  # of all leaves together; X101-DCN has 2e8 with its momentum and moving average
_DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
]


def parse_about(data: bytes) -> tuple[dict[str, Any], Table]:
    """Return (about, table of leaves) of the content of about.json.

    Raises:
        JsonError: it is damaged, or a part of it has another type; the message continues after the file's name.
    """
    content = parse_json(data, MAX_ABOUT_BYTES)
    if not isinstance(content, dict):
        raise JsonError("holds no object")
    crc = content.pop("crc32", None)
    if crc != crc_of_json(content):
        raise JsonError("has a wrong checksum")
    about, leaves = content.get("about"), content.get("leaves")
    if not isinstance(about, dict) or not isinstance(leaves, dict):
        raise JsonError("lacks 'about' or 'leaves'")
    check_about(about)
    _check_leaves(leaves)
    return about, leaves


def check_about(about: dict[str, Any]) -> None:
    """Raise JsonError if a field of `about` has another type than this package writes; a missing field is valid."""
    for name, is_valid in _FIELDS.items():
        if name in about and not is_valid(about[name]):
            raise JsonError(f"has no valid {name!r}")


def crc_of_json(body: Any) -> int:
    """Return the CRC32 of a JSON value, independent of the order of its keys."""
    try:
        return zlib.crc32(json.dumps(body, sort_keys=True).encode())
    except RecursionError:
        raise JsonError("is nested too deeply") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_class(value: Any) -> bool:
    has_name = isinstance(value, dict) and as_text(value.get("name")) is not None
    return has_name and (as_integer(value.get("id")) is not None or as_text(value.get("id")) is not None)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(row, dict) for row in value.values())


_FIELDS: dict[str, Callable[[Any], bool]] = {  # of `about`; each may be missing
    "config": lambda value: isinstance(value, dict),
    "classes": lambda value: isinstance(value, list) and all(map(_is_class, value)),
    "metrics": lambda value: value is None or isinstance(value, dict),
    "step": _is_count,
    "bad_steps": _is_count,
    "fingerprint": lambda value: isinstance(value, dict) and _is_table(value.get("splits", {})),
    "unlogged": lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value),
}


def _check_leaves(leaves: dict[str, Any]) -> None:
    if len(leaves) > _MAX_LEAVES:
        raise JsonError(f"lists {len(leaves):,} leaves, more than {_MAX_LEAVES:,}")
    numbers = 0
    for name, leaf in leaves.items():
        if not (name.isprintable() and as_text(name, 1000) and isinstance(leaf, dict) and _is_leaf(leaf)):
            raise JsonError(f"describes the leaf {name[:100]!r} otherwise than by shape, dtype and checksum")
        numbers += math.prod(max(size, 1) for size in leaf["shape"])
    if numbers > _MAX_NUMBERS:
        raise JsonError(f"describes {numbers:,} numbers in its leaves, more than any detector has")
    folders = {name[:end] for name in leaves for end, letter in enumerate(name) if letter == "/"}
    if conflicts := folders & leaves.keys():
        raise JsonError(f"names a leaf below another leaf, {min(conflicts)}")


def _is_leaf(leaf: dict[str, Any]) -> bool:
    shape, dtype = leaf.get("shape"), leaf.get("dtype")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(_is_count, shape)) or dtype not in _DTYPES:
        return False
    if "parts" not in leaf:
        return _is_count(leaf.get("crc32"))
    return isinstance(leaf["parts"], list) and all(_is_part(part, len(shape)) for part in leaf["parts"])


def _is_part(part: Any, axes: int) -> bool:
    if not isinstance(part, list) or len(part) != 2 or not isinstance(part[0], list) or len(part[0]) != axes:
        return False
    ends = all(isinstance(span, list) and len(span) == 2 and all(map(_is_count, span)) for span in part[0])
    return ends and _is_count(part[1])
