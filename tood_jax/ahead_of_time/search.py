"""The largest batch a chip that a program still compiles for."""

import re
from collections.abc import Callable
from typing import NamedTuple

Try = Callable[[int], float]  # images a chip to the bytes of a chip they need; raises DoesNotFit


class DoesNotFit(Exception):
    """The compiler found that the program needs more memory than the device has.

    Attributes:
        needed: bytes, where the compiler said (libtpu may say temporaries alone); else None.
    """

    def __init__(self, needed: float | None):
        super().__init__("the program needs more memory than the device has")
        self.needed = needed


class Point(NamedTuple):
    """One trial."""

    images: int  # a chip
    bytes: float | None  # a chip
    fits: bool


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_out_of_memory(message: str) -> DoesNotFit | None:
    """The compiler's complaint about memory as `DoesNotFit`; None if the message is about something else."""
    if not re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|exceeds? .*hbm|[Rr]an out of memory", message):
        return None
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of |\(([\d.]+)([KMGT]?)i?B?\) exceeds available", message)
    if used is None:
        return DoesNotFit(None)
    number, unit = (part for part in used.groups() if part is not None)
    return DoesNotFit(float(number) * _UNITS[unit])


def largest_batch(attempt: Try, memory: float, *, first: int = 1, limit: int = 512) -> list[Point]:
    """Trials that end with the largest number of images a chip that fits beside the smallest that doesn't.

    Memory grows nearly linearly with the batch, so a line through the two nearest trials says what to try next: three
    or four compilations, where halving would take ten.

    Args:
        attempt: compiles for so many images a chip.
        memory: bytes a chip that programs may take.
        first: tried first.
        limit: never more than that.
    """
    points: dict[int, Point] = {}

    def try_out(images: int) -> None:
        try:
            points[images] = Point(images, attempt(images), True)
        except DoesNotFit as error:
            points[images] = Point(images, error.needed, False)

    try_out(first)
    while True:
        fitting = max((images for images, point in points.items() if point.fits), default=0)
        failing = min((images for images, point in points.items() if not point.fits), default=limit + 1)
        if failing - fitting <= 1:
            return list(points.values())
        guess = _foretell(points, memory)
        # The neighbour of what is known settles it where the line points beyond.
        try_out(min(max(guess, fitting + 1), failing - 1))


def _foretell(points: dict[int, Point], memory: float) -> int:
    measured = [(point.images, point.bytes) for point in points.values() if point.bytes is not None]
    known = sorted(measured, key=lambda pair: abs(pair[1] - memory))
    if not known:
        return min(points) // 2
    if len(known) == 1:
        images = known[0][0]
        return images * 2 if points[images].fits else images // 2
    (x0, y0), (x1, y1) = known[:2]
    slope = (y1 - y0) / (x1 - x0)
    return max(x0, x1) * 2 if slope <= 0 else int((memory - y0) / slope + x0)
