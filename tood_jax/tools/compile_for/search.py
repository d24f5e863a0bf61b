"""Find the largest batch per chip for which a program compiles."""

import re
from collections.abc import Callable
from typing import NamedTuple

Attempt = Callable[[int], float]  # from images per chip to bytes per chip; raises DoesNotFit


class DoesNotFit(Exception):
    """The compiler found that the program needs more memory than the device has.

    Attributes:
        needed: bytes, if the compiler reports them (libtpu may report only temporaries); else None.
    """

    def __init__(self, needed: float | None):
        super().__init__("the program needs more memory than the device has")
        self.needed = needed


class Point(NamedTuple):
    """A trial."""

    images: int  # per chip
    bytes: float | None  # per chip
    fits: bool


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_out_of_memory(message: str) -> DoesNotFit | None:
    """Return the compiler's error about memory as `DoesNotFit`; None for other messages."""
    if not re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|exceeds? .*hbm|[Rr]an out of memory", message):
        return None
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of |\(([\d.]+)([KMGT]?)i?B?\) exceeds available", message)
    if used is None:
        return DoesNotFit(None)
    number, unit = (part for part in used.groups() if part is not None)
    return DoesNotFit(float(number) * _UNITS[unit])


def largest_batch(attempt: Attempt, memory: float, *, first: int = 1, limit: int = 512) -> list[Point]:
    """Return trials that include the largest number of images per chip that fits and the smallest that does not.

    Memory grows almost linearly with the batch, so a line through the two nearest trials predicts the next one: three
    or four compilations instead of ten by bisection.

    Args:
        attempt: compiles for a number of images per chip.
        memory: bytes per chip that programs may use.
        first: the first number of images.
        limit: the largest number of images.
    """
    points: dict[int, Point] = {}

    def compile_for(images: int) -> None:
        try:
            points[images] = Point(images, attempt(images), True)
        except DoesNotFit as error:
            points[images] = Point(images, error.needed, False)

    compile_for(first)
    while True:
        fitting = max((images for images, point in points.items() if point.fits), default=0)
        failing = min((images for images, point in points.items() if not point.fits), default=limit + 1)
        if failing - fitting <= 1:
            return list(points.values())
        guess = _predict(points, memory)
        # At least one step from the known trials, where the line predicts less or more.
        compile_for(min(max(guess, fitting + 1), failing - 1))


def _predict(points: dict[int, Point], memory: float) -> int:
    measured = [(point.images, point.bytes) for point in points.values() if point.bytes is not None]
    nearest = sorted(measured, key=lambda pair: abs(pair[1] - memory))
    if not nearest:
        return min(points) // 2
    if len(nearest) == 1:
        images = nearest[0][0]
        return images * 2 if points[images].fits else images // 2
    (x0, y0), (x1, y1) = nearest[:2]
    slope = (y1 - y0) / (x1 - x0)
    return max(x0, x1) * 2 if slope <= 0 else int((memory - y0) / slope + x0)
