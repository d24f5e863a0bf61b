"""Single values of an instances JSON: ids, flags, names and boxes, checked whatever their JSON type is."""

import re
import reprlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from tood_jax.data.dataset import Id
from tood_jax.data.errors import DataError
from tood_jax.untrusted.bounded_json import as_integer, as_number, as_text
from tood_jax.untrusted.printable import printable

Box = tuple[float, float, float, float]  # x, y, width, height in pixels

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_INTEGER_TEXT = re.compile(r"([+-]?[0-9]{1,20})(\.0*)?")
_DECIMAL_TEXT = re.compile(r"[+-]?[0-9]{1,20}\.[0-9]{1,20}")
_MAX_RLE_PIXELS = 1 << 40

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxdict = 6


def short_repr(value: Any) -> str:
    """Return a value as short text on one line for a message, also if it is long or deeply nested."""
    return printable(_SHORT.repr(value), 120)


def as_id(value: Any) -> Id | None:
    """Return an id (64-bit integer, finite float or text) unchanged, or None if the value is none."""
    if isinstance(value, str):
        return as_text(value) or None
    if isinstance(value, float):
        return None if as_integer(value) is None and as_number(value) is None else value
    return as_integer(value)


def as_integer_id(value: Any) -> int | None:
    """Return an id as an integer, also if it is written as 3.0, "3" or "3.0"; otherwise None."""
    if isinstance(value, str) and (match := _INTEGER_TEXT.fullmatch(value.strip())):
        value = int(match.group(1))
    return as_integer(value)


class IdTable:
    """Find the id that a reference means, also if both differ only in type: "3", 3 and 3.0.

    Args:
        ids: distinct; equal numbers are the same id.
    """

    def __init__(self, ids: Iterable[Id]):
        self._exact = {id_: id_ for id_ in ids}
        by_number: dict[float, Id | None] = {}
        for id_ in self._exact:
            number = _number_of(id_)
            if number is not None:
                by_number[number] = None if number in by_number else id_  # None: ambiguous
        self._by_number = by_number

    def find(self, reference: Any) -> Id | None:
        """Return the id that a JSON value refers to; None for no id or several."""
        if isinstance(reference, bool) or not isinstance(reference, (int, float, str)):
            return None
        exact = self._exact.get(reference)
        if exact is not None:
            return exact
        number = _number_of(reference)
        return None if number is None else self._by_number.get(number)


def _number_of(id_: Id) -> float | None:
    number = as_integer_id(id_)
    if number is not None or isinstance(id_, int):
        return number
    return float(id_) if isinstance(id_, float) or _DECIMAL_TEXT.fullmatch(id_.strip()) else None


def as_flag(value: Any) -> bool | None:
    """Return a flag written as true, 1, 1.0, "1" or "true" (any case), or as the opposite; None for anything else."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower()) if len(value) < 9 else None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return None


def as_box(value: Any) -> Box | None:
    """Return four finite numbers of JSON, or None."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    x, y, width, height = (as_number(number) for number in value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def describe_invalid_box(value: Any) -> str:
    """Return what a value is instead of a box, to follow "'bbox' must be four finite numbers …, "."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(number, str) for number in value):
        return f"not texts: {short_repr(value)}"
    if isinstance(value, list) and len(value) == 4 and all(type(number) in (int, float) for number in value):
        return f"within ±1e15 each, not {short_repr(value)}"
    if isinstance(value, list) and all(as_number(number) is not None for number in value):
        kind = " (a rotated box?)" if len(value) in (5, 8) else ""
        return f"not {len(value)} numbers{kind}: {short_repr(value)}"
    return f"not {short_repr(value)}"


def segmentation_box(segmentation: Any) -> Box | None:
    """Return the box around polygons [[x0, y0, x1, y1, …], …] or a run-length encoding, or None if it is neither."""
    if isinstance(segmentation, dict):
        return _rle_box(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    points: list[float] = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return None
        for coordinate in polygon:
            number = as_number(coordinate)
            if number is None:
                return None
            points.append(number)
    left, top = min(points[::2]), min(points[1::2])
    return left, top, max(points[::2]) - left, max(points[1::2]) - top


class _Mask(NamedTuple):
    """Lengths of runs of 0, 1, 0, 1, … down the columns of a mask."""

    height: int
    width: int
    runs: list[int]


def _rle_box(segmentation: dict[str, Any]) -> Box | None:
    """Return what pycocotools.mask.toBbox does, which divides by a height of 0 and reads beyond incomplete texts."""
    mask = _mask(segmentation)
    if mask is None:
        return None
    columns: list[int] = []
    rows: list[int] = []
    end = 0
    for position, run in enumerate(mask.runs):
        start, end = end, end + run
        if position % 2 and run:
            (first, top), (last, bottom) = divmod(start, mask.height), divmod(end - 1, mask.height)
            columns += [first, last]
            rows += [top, bottom] if first == last else [0, mask.height - 1]
    if not columns:
        return 0.0, 0.0, 0.0, 0.0
    left, upper = min(columns), min(rows)
    return float(left), float(upper), float(max(columns) - left + 1), float(max(rows) - upper + 1)


def _mask(segmentation: dict[str, Any]) -> _Mask | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = as_integer(size[0], 1, 1 << 20), as_integer(size[1], 1, 1 << 20)
    runs = _runs_of_text(counts) if isinstance(counts, str) else _runs_of_list(counts)
    if height is None or width is None or runs is None or sum(runs) != height * width:
        return None
    return _Mask(height, width, runs)


def _runs_of_list(counts: Any) -> list[int] | None:
    if not isinstance(counts, list):
        return None
    runs = [as_integer(count, 0, _MAX_RLE_PIXELS) for count in counts]
    return None if None in runs else runs  # type: ignore[return-value]


def _runs_of_text(counts: str) -> list[int] | None:
    """Decode COCO's compressed counts: each character has five bits of data and a sixth that means "more follows".

    From the fourth on, a number is the difference to the count two before it.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        number = shift = 0
    return None if shift else runs


def require_text(value: Any, what: str) -> str:
    """Return a text of JSON that is not empty. Raises DataError: "WHAT must be a text, not VALUE"."""
    text = as_text(value)
    if not text:
        raise DataError(f"{what} must be a text of 1 to 4,096 characters that UTF-8 can hold, not {short_repr(value)}.")
    return text
