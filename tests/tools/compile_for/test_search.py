"""The search for the largest batch with simulated memory, and the errors of compilers about memory."""

import pytest

from tood_jax.tools.compile_for.search import DoesNotFit, largest_batch, read_out_of_memory

GIB = 2**30


def searched(needs, memory, *, silent=False, **options):
    """(largest that fits, trials) of a program that needs `needs(images)` bytes."""
    tried = []

    def attempt(images):
        tried.append(images)
        if needs(images) > memory:
            raise DoesNotFit(None if silent else needs(images))
        return needs(images)

    points = largest_batch(attempt, memory, **options)
    return max((point.images for point in points if point.fits), default=0), tried


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("best", [1, 2, 3, 7, 8, 40, 100])
def test_finds_the_largest(best, silent):
    found, tried = searched(lambda images: images * 1.5 * GIB, (best + 0.4) * 1.5 * GIB, silent=silent, first=2)
    assert found == best
    assert len(tried) == len(set(tried)) <= (9 if silent else 5)


def test_few_trials_where_memory_is_a_line_with_an_offset():
    found, tried = searched(lambda images: 1 * GIB + images * 1.7 * GIB, 16 * GIB, first=2)
    assert found == 8
    assert len(tried) <= 4


def test_memory_that_jumps():
    """A compiler that finds a program with less memory when memory is short."""
    found, tried = searched(lambda images: images * (2 if images < 6 else 1.4) * GIB, 16 * GIB, first=2)
    assert found == 11
    assert len(tried) <= 8


def test_one_image_is_too_much():
    found, tried = searched(lambda images: 20 * GIB, 16 * GIB, first=4)
    assert found == 0
    assert 1 in tried


def test_everything_fits():
    found, _ = searched(lambda images: 1.0, float("inf"), first=2, limit=64)
    assert found == 64
    found, _ = searched(lambda images: float(images), 1e9, first=2, limit=64)
    assert found == 64


# The message of libtpu 0.0.42.1 for two products and two sorts of 40,000 × 40,000 numbers on v5e.
LIBTPU = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (29.85G) exceeds "
    "available HBM (15.75G)."
)


@pytest.mark.parametrize(("message", "needed"), [
    (LIBTPU, 29.85 * GIB),
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.", 18.5 * GIB),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.", None),
])  # fmt: skip
def test_errors_about_memory_are_read(message, needed):
    found = read_out_of_memory(message)
    assert found is not None
    assert found.needed == (None if needed is None else pytest.approx(needed))


def test_other_errors_are_not_about_memory():
    assert read_out_of_memory("INVALID_ARGUMENT: something else") is None
