"""Resizing inside a program: the bits of OpenCV and the sizes of the data pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.config import DataConfig
from tood_jax.data.preprocess import canvases, choose_canvas
from tood_jax.data.transforms import resize as resize_with_opencv
from tood_jax.export.resizing import canvas_sizes, resize


def test_pixels_are_those_of_opencv():
    random = np.random.default_rng(0)
    canvas, sides, count = (72, 96), (130, 180), 150
    sizes = np.exp(random.uniform(0, np.log(np.add(sides, 0.9)), (count, 2))).astype(np.int32)
    new_sizes = np.exp(random.uniform(0, np.log(np.add(canvas, 0.9)), (count, 2))).astype(np.int32)
    sizes[:3], new_sizes[:3] = [(1, 1), (64, 96), sides], [canvas, (32, 48), (1, 1)]
    new_sizes[3:6] = sizes[3:6] = [(72, 96), (1, 96), (33, 1)]  # not resized
    images = random.integers(0, 256, (count, *sides, 3), dtype=np.uint8)
    resized = np.asarray(jax.jit(resize, static_argnums=3)(images, sizes, new_sizes, canvas))
    for image, (height, width), new, found in zip(images, sizes, new_sizes, resized, strict=True):
        expected = resize_with_opencv(np.ascontiguousarray(image[:height, :width]), tuple(map(int, new)))
        np.testing.assert_array_equal(found[: new[0], : new[1]], expected)


@pytest.mark.parametrize(
    "data",
    [DataConfig(), DataConfig(eval_short_side=480, max_long_side=800, buckets=((320, 480), (480, 320)))],
    ids=["published", "shrunk to fit"],
)
def test_sizes_are_those_of_the_data_pipeline(data):
    random = np.random.default_rng(1)
    sizes = [*np.exp(random.uniform(0, 9.2, (2000, 2))).astype(int), (1, 1), (1, 9999), (4800, 4803), (2400, 4803)]
    by_canvas = {}
    for size in sizes:
        canvas, new = choose_canvas(size, data.eval_short_side, data.max_long_side, canvases(data))
        by_canvas.setdefault(canvas, []).append((size, new))
    assert by_canvas
    for canvas, pairs in by_canvas.items():
        old, expected = (np.asarray(side, np.int32) for side in zip(*pairs, strict=True))
        found, scales = canvas_sizes(jnp.asarray(old), canvas, data)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(scales, (expected / old).astype(np.float32))
