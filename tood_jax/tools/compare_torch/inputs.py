"""Weights and batches for a comparison: from files, or random.

Random weights keep activations in the range of a trained network: convolutions as in He et al. 2015, small last norms
of the residual branches, scores around the threshold, so that every part of the computation matters.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from tood_jax.data.image_io import decode_image
from tood_jax.data.preprocess import Sample, empty_batch, preprocess, write_sample
from tood_jax.data.transforms import fitted_size
from tood_jax.types import Batch

OBJECTS = (5, 2, 0, 4)  # number of objects of the first image, the second, …, repeated
MAX_OBJECTS = 6  # including padding


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return a random state dict with mmdetection's names and shapes; each tensor depends on the seed and its name."""
    return {name: _random_tensor(name, shape, seed) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise, about_one = random.standard_normal(shape), random.uniform(0.8, 1.2, shape)
    leaf = name.rpartition(".")[2]
    if len(shape) == 4:
        value = noise * _gain(name) / np.sqrt(np.prod(shape[1:]))
    elif leaf in ("running_var", "scale"):
        value = about_one
    elif leaf == "weight":
        value = about_one * (0.2 if ".bn3." in name else 1.0)
    elif name.endswith("tood_cls.bias"):
        value = 0.3 * noise - 4
    elif name.endswith("cls_prob_module.2.bias"):
        value = 0.1 * noise - 2
    else:
        value = 0.1 * noise
    return np.asarray(value, "f4")


def _gain(name: str) -> float:
    """Return the standard deviation of a convolution's output over that of its input."""
    if "conv_offset" in name:  # offsets of about one location
        return 0.7
    if name.endswith("tood_reg.weight"):  # exp follows
        return 0.3
    return 1.0 if "layer_attention" in name else 2**0.5


def example_batch(
    images: int, height: int, width: int, num_classes: int, seed: int, files: Sequence[str] = ()
) -> Batch:
    """Return a batch on a canvas of height × width pixels with random objects.

    Images are the files, resized to fit, or patches of noise, of which every second is smaller than the canvas. The
    random boxes have no equal distances to two locations.

    Raises:
        BrokenImageError: a file can't be read.
    """
    random = np.random.default_rng([seed, 2021])
    count, canvas = len(files) or images, (height, width)
    batch = empty_batch(count, canvas, MAX_OBJECTS)
    for i in range(count):
        write_sample(batch, i, _image_of_file(files[i], canvas) if files else _noise_image(random, i, canvas), i)
    for i, size in enumerate(batch.sizes):
        for j in range(OBJECTS[i % len(OBJECTS)]):
            extent = random.uniform(0.2, 0.8, 2) * size  # (height, width)
            corner = random.uniform(0, 1, 2) * (size - extent)
            batch.gt_boxes[i, j] = [*corner[::-1], *(corner + extent)[::-1]]
            batch.gt_labels[i, j], batch.gt_mask[i, j] = random.integers(num_classes), True
    return batch


def _image_of_file(file: str, canvas: tuple[int, int]) -> Sample:
    image = decode_image(file)
    return preprocess(image, fitted_size(image.shape[:2], canvas, enlarge=True))


def _noise_image(random: np.random.Generator, index: int, canvas: tuple[int, int]) -> Sample:
    """Return patches of 8 × 8 pixels with noise, as large as the canvas or 0.7 times as large."""
    size = canvas if index % 2 == 0 else (int(0.7 * canvas[0]), int(0.7 * canvas[1]))
    patches = np.kron(random.normal(120, 50, (-(-size[0] // 8), -(-size[1] // 8), 3)), np.ones((8, 8, 1)))
    image = (patches[: size[0], : size[1]] + random.normal(0, 15, (*size, 3))).clip(0, 255).astype(np.uint8)
    return Sample(image, scale=np.asarray([0.8, 0.75], np.float32))
