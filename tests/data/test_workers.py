"""Worker processes: identical batches, errors that arrive, and neither hangs nor orphans after a kill."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.data.helpers import SETTINGS, assert_batches_equal, take_all, within_a_minute
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.loader import eval_batches, train_batches


def many_batches(dataset, data, workers):
    return train_batches(dataset, replace(data, threads=1, workers=workers), **{**SETTINGS, "num_steps": 100_000})


def test_workers_give_identical_batches_and_counts(shapes_set, data_config):
    data = replace(data_config, max_objects=2)
    in_threads = train_batches(shapes_set, data, **SETTINGS)
    in_workers = train_batches(shapes_set, replace(data, workers=2, threads=1), **SETTINGS)
    assert_batches_equal(take_all(in_workers), take_all(in_threads))
    assert in_workers.counts == in_threads.counts
    assert in_threads.counts.truncated_objects > 0
    assert in_workers.waiting_seconds > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_there_may_be_fewer_batches_than_workers_or_none(batches, shapes_set, data_config, workers):
    data = replace(data_config, workers=workers)
    assert take_all(train_batches(shapes_set, data, **{**SETTINGS, "num_steps": 0})) == []
    first = within_a_minute(lambda: take_all(train_batches(shapes_set, data, **{**SETTINGS, "num_steps": 1})))
    assert_batches_equal(first, batches[:1])


def test_a_broken_image_in_a_worker_raises(breakable, data_config):
    dataset, truncate = breakable
    truncate(*range(23))
    iterator = train_batches(dataset, replace(data_config, workers=1, threads=1), **SETTINGS)
    with pytest.raises(BrokenImageError, match=r"\.jpg is truncated"):
        next(iterator)
    iterator.close()
    assert not multiprocessing.active_children()


def test_broken_images_in_workers_are_skipped_and_counted(breakable, data_config):
    dataset, truncate = breakable
    truncate(0, 22)
    data = replace(data_config, broken_images="skip")
    in_threads = eval_batches(dataset, data, batch_size=4)
    in_workers = eval_batches(dataset, replace(data, workers=2), batch_size=4)
    assert_batches_equal(within_a_minute(lambda: take_all(in_workers)), take_all(in_threads))
    assert in_workers.counts == in_threads.counts
    assert sum(in_workers.counts.broken.values()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unexpected_error_keeps_its_traceback(shapes_set, data_config, workers):
    """Also if it cannot be pickled: Grain would wait for it forever."""
    bad = replace(shapes_set, images=(*shapes_set.images[:3], *[replace(shapes_set.images[3], boxes=None)] * 20))
    iterator = train_batches(bad, replace(data_config, workers=workers), **SETTINGS)
    with pytest.raises(RuntimeError, match=r"(?s)Making a batch failed:\nTraceback.*scale_boxes.*TypeError"):
        within_a_minute(lambda: take_all(iterator))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_raises_and_does_not_hang(shapes_set, data_config, workers):
    iterator = many_batches(shapes_set, data_config, workers=workers)
    next(iterator)
    os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"worker process was killed .*-9.* lower data.workers"):
        within_a_minute(lambda: take_all(iterator))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_requests_to_stop_do_not_end_the_workers(shapes_set, data_config, number):
    """A terminal or a scheduler sends these signals to all processes; the parent finishes its step and saves."""
    iterator = many_batches(shapes_set, data_config, workers=1)
    next(iterator)
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    within_a_minute(lambda: [next(iterator) for _ in range(30)])
    iterator.close()
    assert not multiprocessing.active_children()


def test_workers_end_when_their_parent_is_killed(shapes, data_config, tmp_path):
    code = f"""
import multiprocessing, os, signal
from tood_jax.config import *
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.loader import train_batches
if __name__ == "__main__":
    data = {replace(data_config, workers=1, threads=1)!r}
    iterator = train_batches(load_coco({shapes!r}), data, batch_size=4, seed=0, start_step=0, num_steps=1000)
    next(iterator)
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
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
