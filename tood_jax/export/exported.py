"""Run an exported detector on images of any size.

Images of one canvas form a batch, and a batch is an array of one of few shapes, because a program is compiled for each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from tood_jax.config import DataConfig
from tood_jax.data.preprocess import canvases, choose_canvas
from tood_jax.evaluation.predict import ImageDetections
from tood_jax.export.folder import ExportedFolder, ExportError
from tood_jax.export.program import Found
from tood_jax.untrusted.printable import printable

_FILLER = np.zeros((1, 1, 3), np.uint8)

Run = Callable[[tuple[int, int], np.ndarray, np.ndarray], Sequence[Any]]
"""(canvas, images [B, h, w, 3] uint8, sizes [B, 2] int32) to the fields of `Found`."""


class _Shape(NamedTuple):
    canvas: tuple[int, int]
    sides: tuple[int, int]  # (height, width) of the array of original images


def exported_run(opened: ExportedFolder) -> Run:
    """Return a function that runs the StableHLO program of a canvas.

    Raises:
        ExportError: a file is damaged or missing, or this JAX can't read the programs.
    """
    files = {one.canvas: one.file for one in opened.programs.get("stablehlo", ())}
    if set(files) != set(canvases(opened.config.data)):
        raise ExportError(f"{opened.folder} has no StableHLO program for each canvas of its config: export it again.")
    weights = jax.device_put(dict(opened.tensors))
    programs = {canvas: jax.jit(_deserialize(opened, name).call) for canvas, name in files.items()}
    return lambda canvas, images, sizes: programs[canvas](weights, images, sizes)


def _deserialize(opened: ExportedFolder, name: str) -> jax.export.Exported:
    data = bytearray(opened.read(name))
    try:
        return jax.export.deserialize(data)
    except ImportError as error:
        raise ExportError(f"{opened.folder / name} needs a package: {printable(error)}.") from None
    except Exception as error:  # flatbuffers and MLIR raise many types
        raise ExportError(
            f"{opened.folder / name} can't be read by JAX {jax.__version__} ({printable(error)}): export it again."
        ) from None


def detect_images(
    run: Run, data: DataConfig, images: Iterable[tuple[int, np.ndarray]], rows: int
) -> Iterator[ImageDetections]:
    """Yield the detections of each image, in the order in which batches are full.

    Args:
        run: of `exported_run`.
        data: how images are resized.
        images: (image index, uint8 RGB [h, w, 3]) of each image.
        rows: images per batch; a last batch is filled up.
    """
    waiting: dict[_Shape, list[tuple[int, np.ndarray]]] = {}
    for numbered in images:
        shape = _batch_shape(numbered[1].shape[:2], data)
        group = waiting.setdefault(shape, [])
        group.append(numbered)
        if len(group) == rows:
            yield from _detect(run, shape, waiting.pop(shape), rows)
    for shape, group in waiting.items():
        yield from _detect(run, shape, group, rows)


def fits_canvas(image: np.ndarray, data: DataConfig) -> bool:
    """Return whether an image needs no array that is larger than its canvas."""
    shape = _batch_shape(image.shape[:2], data)
    return shape.sides == shape.canvas


def shrinkage(image: np.ndarray, data: DataConfig) -> float:
    """Return by how much an image is shrunk on its canvas; 1 for one that is enlarged."""
    size = image.shape[:2]
    _, new = choose_canvas(size, data.eval_short_side, data.max_long_side, canvases(data))
    return max(1.0, size[0] / new[0], size[1] / new[1])


def _batch_shape(size: tuple[int, int], data: DataConfig) -> _Shape:
    canvas, _ = choose_canvas(size, data.eval_short_side, data.max_long_side, canvases(data))
    factor = 1
    while factor * canvas[0] < size[0] or factor * canvas[1] < size[1]:
        factor *= 2
    return _Shape(canvas, (factor * canvas[0], factor * canvas[1]))


def _detect(run: Run, shape: _Shape, group: list[tuple[int, np.ndarray]], rows: int) -> Iterator[ImageDetections]:
    images = [image for _, image in group] + [_FILLER] * (rows - len(group))
    pixels = np.zeros((rows, *shape.sides, 3), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = np.asarray([image.shape[:2] for image in images], np.int32)
    found = Found(*(np.asarray(array) for array in run(shape.canvas, pixels, sizes)))
    for i, (index, _) in enumerate(group):
        count = int(found.counts[i])
        yield ImageDetections(index, found.boxes[i, :count], found.scores[i, :count], found.labels[i, :count])
