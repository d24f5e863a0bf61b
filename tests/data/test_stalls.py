"""A read that never ends: the run ends, and says who was reading what. A pipe that nobody writes to plays the file."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import SETTINGS, assert_equal, take
from tests.data.test_workers import within_a_minute
from tood_jax.data.activity import Activity, set_worker
from tood_jax.data.batching import TrainPlan
from tood_jax.data.errors import StalledError
from tood_jax.data.pipeline import train_batches


def hang(path):
    """Replace a file by a pipe without a writer."""
    path.unlink()
    os.mkfifo(path)


@pytest.fixture
def hung(damaged, data_config):
    """The generated set, an image of which, of step 1's batch, never answers; readers are let go at the end."""
    dataset, _ = damaged
    sizes = np.array([(one.height, one.width) for one in dataset.images])
    plan = TrainPlan(sizes, data_config, SETTINGS["batch_size"], SETTINGS["seed"])
    path = dataset.images[plan.batch(1).rows[2].index].path
    hang(path)
    yield dataset, path
    end = time.monotonic() + 10
    while any(thread.name.startswith("grain") for thread in threading.enumerate()) and time.monotonic() < end:
        with contextlib.suppress(OSError):  # no reader waits (any more)
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.05)


def sentence_of(stream):
    """Take step 0, however long that takes, and then wait a little for step 1."""
    next(stream)
    stream._limit = stream._limit._replace(seconds=3)
    with pytest.raises(StalledError) as caught:
        within_a_minute(lambda: next(stream))
    assert list(stream) == []  # closed
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("threads", [0, 2])
def test_a_hung_thread_is_named_with_its_image_and_step(hung, data_config, threads):
    dataset, path = hung
    said = sentence_of(train_batches(dataset, replace(data_config, threads=threads), **SETTINGS))
    assert said.startswith("The batch of step 1 did not come within 3 s (data.timeout_seconds): thread ")
    assert f"of process {os.getpid()} has been reading {path} for step 1 for " in said


def test_a_hung_worker_process_is_named_and_ended(hung, data_config):
    dataset, path = hung
    said = sentence_of(train_batches(dataset, replace(data_config, workers=1, threads=1), **SETTINGS))
    assert "thread 0 of worker 0 (process " in said
    assert f"has been reading {path} for step 1 for " in said
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_if_nothing_is_being_read_that_is_said(shapes_set, data_config, monkeypatch):
    stream = train_batches(shapes_set, replace(data_config, timeout_seconds=0.5), **SETTINGS)
    monkeypatch.setattr(stream._puller, "_asked", queue.SimpleQueue())  # nobody hears the asking
    with pytest.raises(StalledError, match=r"step 0 did not come within 0\.5 s .*no thread and no worker is reading"):
        next(stream)


def test_without_a_limit_batches_are_the_same(batches, shapes_set, data_config):
    assert_equal(take(train_batches(shapes_set, replace(data_config, timeout_seconds=0), **SETTINGS)), batches)


def test_a_door_ends_although_a_thread_hangs(shapes, tmp_path, data_config):
    code = f"""
import os
from dataclasses import replace
from pathlib import Path
from tood_jax.cli.common import said_in_one_sentence
from tood_jax.config import *
from tood_jax.data.coco import load_coco
from tood_jax.data.pipeline import eval_batches
dataset = load_coco(SplitConfig({shapes.images!r}, {shapes.annotations!r}))
os.mkfifo({str(tmp_path / "pipe")!r})
pipe = replace(dataset.images[3], path=Path({str(tmp_path / "pipe")!r}))
dataset = replace(dataset, images=(*dataset.images[:3], pipe, *dataset.images[4:]))
with said_in_one_sentence("eval.py"):
    list(eval_batches(dataset, {replace(data_config, timeout_seconds=1.0)!r}, batch_size=4))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("eval.py: The batch of step ")
    assert "Traceback" not in done.stderr


def test_the_table_of_two_workers(tmp_path):
    table = Activity(workers=2, threads=2)
    other = pickle.loads(pickle.dumps(table))  # as a worker process gets it
    try:
        set_worker(1)
        with other.reading(step=5, image=8):
            (found,) = table.under_way()
            assert (found.worker, found.process, found.thread, found.step, found.image) == (1, os.getpid(), 0, 5, 8)
            assert found.seconds >= 0
            assert found.who() == f"thread 0 of worker 1 (process {os.getpid()})"
        assert table.under_way() == []
    finally:
        set_worker(-1)
        table.close()
    table.close()
    assert not other._path.exists()
