"""Times of operations in a profile."""

import jax
import jax.numpy as jnp
import pytest

from tood_jax.run_log.profile_trace import Event, own_times, read_events, seconds_by_operation


def test_an_event_loses_what_is_inside_of_it():
    line = [Event("inner", 2, 3), Event("loop", 0, 10), Event("innermost", 3, 1), Event("next", 10, 4)]
    assert sorted(own_times(line)) == [("inner", 2), ("innermost", 1), ("loop", 7), ("next", 4)]


def test_no_events():
    assert list(own_times([])) == []


def test_seconds_are_summed_over_threads_without_what_is_inside():
    lines = [[Event("loop", 0, 10e9), Event("add", 2e9, 3e9)], [Event("add", 0, 1e9)]]
    assert seconds_by_operation(lines) == {"loop": 7.0, "add": 4.0}


def test_the_operations_of_a_real_profile_are_read(tmp_path):
    multiply = jax.jit(lambda x: jnp.sin(x @ x))
    x = jnp.ones((256, 256))
    multiply(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            multiply(x).block_until_ready()
    seconds = seconds_by_operation(read_events(tmp_path))
    assert any("sin" in name for name in seconds)
    assert 0 < sum(seconds.values()) < 10


def test_a_folder_without_a_profile(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no profile"):
        read_events(tmp_path)
