"""A read that never ends: the run ends and names the reader, the image and the step.

Image paths that read a pipe without a writer take the place of files on a network share that hangs; a pipe in the place
of the file itself would be refused.
"""

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.data.helpers import SETTINGS, assert_batches_equal, sizes_of, take_all, within_a_minute
from tood_jax.data.active_reads import ActiveReads, set_worker_index
from tood_jax.data.batch_iterator import BatchIterator
from tood_jax.data.errors import StalledError
from tood_jax.data.loader import train_batches
from tood_jax.data.sampler import TrainSampler


@dataclass(frozen=True)
class HangingPath:
    """An image whose reading waits for the writer of a pipe."""

    pipe: Path

    @property
    def name(self) -> str:
        return self.pipe.name

    def read_bytes(self) -> bytes:
        return self.pipe.read_bytes()

    def __str__(self) -> str:
        return str(self.pipe)


def hang(path):
    """Replace a file by a pipe without a writer, and return the path that reads it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return HangingPath(path)


@pytest.fixture
def hanging(breakable, data_config):
    """A data set in which an image of step 1's batch hangs, and that image's path; threads are released at the end."""
    dataset, _ = breakable
    sampler = TrainSampler(sizes_of(dataset), data_config, SETTINGS["batch_size"], SETTINGS["seed"])
    position = sampler.batch(1).rows[2].index
    path = dataset.images[position].path
    images = list(dataset.images)
    images[position] = replace(images[position], path=hang(path))
    yield replace(dataset, images=tuple(images)), path
    end = time.monotonic() + 10
    while any(thread.name.startswith("grain") for thread in threading.enumerate()) and time.monotonic() < end:
        with contextlib.suppress(OSError):  # no reader is waiting now
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.05)


def stall_message(iterator):
    """Take step 0 without a short limit, then wait 3 s for step 1 and return the error."""
    next(iterator)
    iterator.timeout_seconds = 3
    with pytest.raises(StalledError) as caught:
        within_a_minute(lambda: next(iterator))
    assert list(iterator) == []  # it is closed
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("threads", [0, 2])
def test_a_hanging_thread_is_named_with_its_image_and_step(hanging, data_config, threads):
    dataset, path = hanging
    message = stall_message(train_batches(dataset, replace(data_config, threads=threads), **SETTINGS))
    assert message.startswith("The batch of step 1 did not come within 3 s (data.timeout_seconds): thread ")
    assert f"of process {os.getpid()} has been reading {path} for step 1 for " in message


def test_a_hanging_worker_process_is_named_and_ended(hanging, data_config):
    dataset, path = hanging
    message = stall_message(train_batches(dataset, replace(data_config, workers=1, threads=1), **SETTINGS))
    assert "thread 0 of worker 0 (process " in message
    assert f"has been reading {path} for step 1 for " in message
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_the_message_says_if_nothing_is_being_read():
    released = threading.Event()

    class Waiting:
        def __next__(self):
            released.wait()
            raise StopIteration

    iterator = BatchIterator(
        Waiting(), 0, 1, timeout_seconds=0.2, active_reads=ActiveReads(0, 1), path_of=lambda index: index
    )
    try:
        with pytest.raises(StalledError, match=r"step 0 did not come within 0\.2 s .*no thread and no worker is read"):
            next(iterator)
    finally:
        released.set()


def test_batches_are_the_same_without_a_limit(batches, shapes_set, data_config):
    data = replace(data_config, timeout_seconds=0)
    assert_batches_equal(take_all(train_batches(shapes_set, data, **SETTINGS)), batches)


def test_a_program_ends_although_a_thread_hangs(shapes, tmp_path, data_config):
    code = f"""
import os
from dataclasses import replace
from pathlib import Path
from tood_jax.cli.common import report_errors
from tood_jax.config import *
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.loader import eval_batches
from tests.data.test_stalls import hang
dataset = load_coco(SplitConfig({shapes.images!r}, {shapes.annotations!r}))
pipe = replace(dataset.images[3], path=hang(Path({str(tmp_path / "pipe")!r})))
dataset = replace(dataset, images=(*dataset.images[:3], pipe, *dataset.images[4:]))
with report_errors("eval.py"):
    list(eval_batches(dataset, {replace(data_config, timeout_seconds=1.0)!r}, batch_size=4))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("eval.py: The batch of step ")
    assert "Traceback" not in done.stderr


def test_workers_share_the_table_of_active_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = ActiveReads(workers=2, threads=2)
    in_worker = pickle.loads(pickle.dumps(table))  # as a worker process receives it
    try:
        set_worker_index(1)
        with in_worker.reading(step=5, image=8):
            (read,) = table.current()
            assert (read.worker, read.process, read.thread, read.step, read.image) == (1, os.getpid(), 0, 5, 8)
            assert read.seconds >= 0
            assert read.reader() == f"thread 0 of worker 1 (process {os.getpid()})"
        assert table.current() == []
    finally:
        set_worker_index(-1)
        table.close()
    table.close()
    assert list(tmp_path.iterdir()) == []
