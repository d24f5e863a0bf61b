"""Worker processes: the same bits, errors that arrive, and no hang and no orphan whoever is killed."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.data.conftest import SETTINGS, assert_equal, take
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.pipeline import eval_batches, train_batches


def within_a_minute(function):
    """What the function returns or raises; fails if it hangs."""
    future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=60)
    except concurrent.futures.TimeoutError:
        for child in multiprocessing.active_children():
            child.kill()
        pytest.fail("It hangs.")


def endless(dataset, data, **more):
    return train_batches(dataset, replace(data, threads=1, **more), **{**SETTINGS, "num_steps": 100_000})


def test_the_same_bits_from_worker_processes_and_their_counts(shapes_set, data_config):
    data = replace(data_config, max_objects=2)
    here = train_batches(shapes_set, data, **SETTINGS)
    there = train_batches(shapes_set, replace(data, workers=2, threads=1), **SETTINGS)
    assert_equal(take(there), take(here))
    assert there.counts == here.counts
    assert here.counts.truncated_objects > 0
    assert there.waiting_seconds > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_batches_than_workers_and_none_at_all(batches, shapes_set, data_config, workers):
    data = replace(data_config, workers=workers)
    assert take(train_batches(shapes_set, data, **{**SETTINGS, "num_steps": 0})) == []
    one = within_a_minute(lambda: take(train_batches(shapes_set, data, **{**SETTINGS, "num_steps": 1})))
    assert_equal(one, batches[:1])


def test_a_broken_image_in_a_worker_process_stops_the_run_the_same_way(damaged, data_config):
    dataset, damage = damaged
    damage(*range(23))
    stream = train_batches(dataset, replace(data_config, workers=1, threads=1), **SETTINGS)
    with pytest.raises(BrokenImageError, match=r"\.jpg is truncated"):
        next(stream)
    stream.close()
    assert not multiprocessing.active_children()


def test_broken_images_in_worker_processes_are_skipped_and_counted_as_here(damaged, data_config):
    dataset, damage = damaged
    damage(0, 22)
    data = replace(data_config, broken_images="skip")
    here = eval_batches(dataset, data, batch_size=4)
    there = eval_batches(dataset, replace(data, workers=2), batch_size=4)
    assert_equal(within_a_minute(lambda: take(there)), take(here))
    assert there.counts == here.counts
    assert sum(there.counts.broken.values()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unforeseen_error_brings_its_traceback(shapes_set, data_config, workers):
    """Also if it can't be pickled, which Grain's workers would wait for in vain."""
    bad = replace(shapes_set, images=(*shapes_set.images[:3], *[replace(shapes_set.images[3], boxes=None)] * 20))
    stream = train_batches(bad, replace(data_config, workers=workers), **SETTINGS)
    with pytest.raises(RuntimeError, match=r"(?s)Making a batch failed:\nTraceback.*scale_boxes.*TypeError"):
        within_a_minute(lambda: take(stream))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_raises_and_does_not_hang(shapes_set, data_config, workers):
    stream = endless(shapes_set, data_config, workers=workers)
    next(stream)
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"worker process was killed .*-9.* lower data.workers"):
        within_a_minute(lambda: take(stream))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_requests_to_stop_do_not_end_the_workers(shapes_set, data_config, number):
    """A terminal or a scheduler sends them to all processes; the parent finishes its step and saves."""
    stream = endless(shapes_set, data_config, workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    within_a_minute(lambda: [next(stream) for _ in range(30)])
    stream.close()
    assert not multiprocessing.active_children()


def test_workers_end_with_a_parent_that_was_killed(shapes, data_config, tmp_path):
    code = f"""
import multiprocessing, os, signal
from tood_jax.config import *
from tood_jax.data.coco import load_coco
from tood_jax.data.pipeline import train_batches
if __name__ == "__main__":
    data = {replace(data_config, workers=1, threads=1)!r}
    stream = train_batches(load_coco({shapes!r}), data, batch_size=4, seed=0, start_step=0, num_steps=1000)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "parent.py").write_text(code)
    with open(tmp_path / "workers", "w") as out:  # a pipe would stay open as long as the workers live
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, tmp_path / "parent.py"], stdout=out, env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 1
    end = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
