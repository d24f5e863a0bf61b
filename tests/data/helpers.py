"""Functions that several tests of the data share."""

import concurrent.futures
import multiprocessing
import threading

import cv2
import numpy as np
import pytest

from tood_jax.cli import to_array_record
from tood_jax.types import Batch

SETTINGS = {"batch_size": 4, "seed": 5, "start_step": 0, "num_steps": 8}  # of train_batches; an epoch has 5 steps


def smooth_image(height, width, seed=0):
    """Return a smooth [height, width, 3] uint8 RGB image."""
    grid = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)


def sizes_of(dataset):
    return np.array([(image.height, image.width) for image in dataset.images])


def take_all(iterator):
    batches = list(iterator)
    iterator.close()
    return batches


def assert_batches_equal(found, expected):
    assert len(found) == len(expected)
    for batch, expected_batch in zip(found, expected, strict=True):
        for name, array, expected_array in zip(Batch._fields, batch, expected_batch, strict=True):
            np.testing.assert_array_equal(array, expected_array, err_msg=name)
            assert array.dtype == expected_array.dtype


def write_array_record_folder(split, out, **options):
    """Convert a split with the command to_array_record; options replace those that follow from the split."""
    options = {"images": split.images, "annotations": split.annotations, "out": out, **options}
    to_array_record.main([f"--{name}={value}" for name, value in options.items()])


def within_a_minute(function):
    """Return or raise what the function does; fail if it takes longer."""
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
