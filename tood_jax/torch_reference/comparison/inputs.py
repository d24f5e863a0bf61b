"""Weights and batches for a comparison: from files, or made of a seed.

Made weights keep activations in the range of a trained network's: convolutions as He et al. 2015, small last norms of
the residual branches, scores around the threshold, so that every part of the computation has something to do.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from tood_jax.data.decode import decode_image
from tood_jax.data.transforms import resize
from tood_jax.types import Batch

OBJECTS = (5, 2, 0, 4)  # of the first image, the second, …, over and over
MAX_OBJECTS = 6  # rows of padding included


def made_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """A state dict of mmdetection's names and shapes; each tensor follows from the seed and its name."""
    return {name: _made(name, shape, seed) for name, shape in shapes.items()}


def _made(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
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
    """Standard deviation of a convolution's output over that of its input."""
    if "conv_offset" in name:  # offsets of about a cell
        return 0.7
    if name.endswith("tood_reg.weight"):  # it goes through exp
        return 0.3
    return 1.0 if "layer_attention" in name else 2**0.5


def made_batch(images: int, height: int, width: int, num_classes: int, seed: int, files: Sequence[str] = ()) -> Batch:
    """A batch on a canvas of height × width pixels.

    Images are the files, shrunk or enlarged to fit, or patches of noise, of which every second is smaller than the
    canvas. Objects are made up in either case, by random numbers that no two of the cells' distances to them are equal.

    Raises:
        BrokenImageError: a file can't be read.
    """
    random = np.random.default_rng([seed, 2021])
    count = len(files) or images
    pixels, sizes, scales = np.zeros((count, height, width, 3), np.uint8), [], []
    for i in range(count):
        if files:
            image = decode_image(files[i])
            factor = min(height / image.shape[0], width / image.shape[1])
            size = (max(1, int(image.shape[0] * factor)), max(1, int(image.shape[1] * factor)))
            scales.append((size[0] / image.shape[0], size[1] / image.shape[1]))
            image = resize(image, size)
        else:
            size = (height, width) if i % 2 == 0 else (int(0.7 * height), int(0.7 * width))
            scales.append((0.8, 0.75))
            patches = np.kron(random.normal(120, 50, (-(-size[0] // 8), -(-size[1] // 8), 3)), np.ones((8, 8, 1)))
            image = (patches[: size[0], : size[1]] + random.normal(0, 15, (*size, 3))).clip(0, 255).astype(np.uint8)
        pixels[i, : size[0], : size[1]] = image
        sizes.append(size)
    boxes, labels = np.zeros((count, MAX_OBJECTS, 4), "f4"), np.zeros((count, MAX_OBJECTS), np.int32)
    mask = np.zeros((count, MAX_OBJECTS), bool)
    for i, size in enumerate(sizes):
        for j in range(OBJECTS[i % len(OBJECTS)]):
            extent = random.uniform(0.2, 0.8, 2) * size  # (height, width)
            corner = random.uniform(0, 1, 2) * (size - extent)
            boxes[i, j] = [*corner[::-1], *(corner + extent)[::-1]]
            labels[i, j], mask[i, j] = random.integers(num_classes), True
    return Batch(
        images=pixels,
        sizes=np.asarray(sizes, np.int32),
        scales=np.asarray(scales, "f4"),
        gt_boxes=boxes,
        gt_labels=labels,
        gt_mask=mask,
        image_indices=np.arange(count, dtype=np.int32),
    )
