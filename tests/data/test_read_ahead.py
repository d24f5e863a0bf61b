"""Reading ahead in threads."""

import threading
import time

import pytest

from tood_jax.data.errors import DataError, StalledError
from tood_jax.data.read_ahead import read_ahead


def test_results_come_in_order_and_a_bounded_number_is_ahead():
    taken = []

    def items():
        for i in range(60):
            taken.append(i)
            yield i

    def slow(i):
        time.sleep(0.002 * (i % 3 == 0))
        return i

    for number, result in enumerate(read_ahead(slow, items(), threads=3)):
        assert result == number
        assert len(taken) <= number + 20
    assert number == 59


def test_several_threads_work_at_once():
    together = threading.Barrier(3, timeout=10)  # passes only when three wait
    assert sorted(read_ahead(lambda _: together.wait(), range(3), threads=3)) == [0, 1, 2]


def test_an_error_comes_at_its_place_and_ends_the_threads():
    def fail(i):
        if i == 2:
            raise DataError("two")
        return i

    before, found = threading.active_count(), []
    with pytest.raises(DataError, match="two"):
        found.extend(read_ahead(fail, range(9), threads=2))
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_read_that_hangs_is_named():
    hang = threading.Event()
    with pytest.raises(StalledError, match=r"item 0 was not read within 0\.05 s \(data\.timeout_seconds\)"):
        list(read_ahead(lambda i: hang.wait(), range(3), 2, 0.05, lambda i: f"item {i}"))
    hang.set()
