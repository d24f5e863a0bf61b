"""Load a trained detector, and detect objects in images."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np

from tood_jax.api.detections import Detections
from tood_jax.api.images import Image, is_single, list_images, to_pixels
from tood_jax.checkpoint.reader import check_same_leaves, named_leaves
from tood_jax.checkpoint.store import Checkpoint, CheckpointError
from tood_jax.config import Config, ConfigError
from tood_jax.config.validation import stored_config
from tood_jax.data.dataset import ClassInfo, class_names
from tood_jax.data.preprocess import batch_by_canvas
from tood_jax.data.read_ahead import read_ahead
from tood_jax.data.views import View, Views, parse_variants
from tood_jax.distributed.sharding import make_mesh, replicated
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step, detect_batches
from tood_jax.evaluation.views import ViewMerger
from tood_jax.export.exported import detect_images
from tood_jax.export.folder import ExportedFolder, open_trained
from tood_jax.export.write import run_of
from tood_jax.models.build import build_model
from tood_jax.models.detector import Detector
from tood_jax.types import Batch, Tree
from tood_jax.weights.finite import check_finite
from tood_jax.weights.shapes import variable_shapes

_LOGGER = logging.getLogger("tood_jax")


class TrainedModel(NamedTuple):
    """A model with the weights and classes of a checkpoint."""

    model: Detector
    params: Tree
    batch_stats: Tree
    classes: tuple[ClassInfo, ...]


class ImageDetector:
    """Detects objects in images; `load` returns one."""

    config: Config
    classes: tuple[ClassInfo, ...]
    """Category id and name of each label, in the order of the labels."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return class_names(self.classes)

    @overload
    def __call__(
        self,
        images: str,
        threshold: float = ...,
        batch: int = ...,
        tiles: int = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> Any: ...

    @overload
    def __call__(
        self,
        images: Path | np.ndarray,
        threshold: float = ...,
        batch: int = ...,
        tiles: int = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Sequence[Image] | Iterator[Image],
        threshold: float = ...,
        batch: int = ...,
        tiles: int = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> list[Detections]: ...

    @overload
    def __call__(
        self,
        images: Image,
        threshold: float = ...,
        batch: int = ...,
        tiles: int = ...,
        overlap: float = ...,
        tta: str = ...,
    ) -> Any: ...

    def __call__(
        self,
        images: Any,
        threshold: float = 0.0,
        batch: int = 1,
        tiles: int = 0,
        overlap: float = 0.2,
        tta: str = "",
    ) -> Any:
        """Detect objects in one or several images.

        Args:
            images: an image: the path of a file, uint8 RGB values [height, width, 3] or a PIL image; or several: a
                glob, a list or another iterable of images.
            threshold: smallest score of a detection, 0–1; those below detect.score_threshold never appear.
            batch: number of images, or views of them, that are computed together. Several of the same canvas fill a
                batch; a last batch is padded, so that each canvas is compiled once.
            tiles: side of the tiles in which a larger image is also detected, pixels of the image; 0 for none.
            overlap: smallest share of a tile's side that neighbouring tiles have in common, 0–0.9.
            tta: test-time augmentation: what is detected beside the image, such as "flip,0.8,1.2" (mirrored, and with
                sides of 0.8 and 1.2 times the size), merged by NMS.

        Returns:
            The detections of an image, or a list of them in the order of the images.

        Raises:
            DataError: an image cannot be read or has another type, or a glob matches no file.
            ValueError: `threshold`, `batch`, `tiles`, `overlap` or `tta` is out of range.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a number from 0 to 1.")
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1.")
        views = Views(tiles, overlap, parse_variants(tta))
        if is_single(images):
            return self._detect_all([images], 1 if views.is_one else batch, views)[0].above(threshold)
        return [found.above(threshold) for found in self._detect_all(list(list_images(images)), batch, views)]

    def _detect_all(self, images: Sequence[Image], rows: int, views: Views) -> list[Detections]:
        """Return the detections of each image, computed in batches of `rows` views."""
        ordered = sorted(self._found(enumerate(images), rows, views), key=lambda one: one.image_index)
        return [
            Detections(one.boxes, one.scores, one.labels, self.classes, image, self.config.data.bit_depth)
            for one, image in zip(ordered, images, strict=True)
        ]

    def _found(self, images: Iterable[tuple[int, Image]], rows: int, views: Views) -> Iterator[ImageDetections]:
        """Yield the detections of each image (image index, image), in any order."""
        raise NotImplementedError


class TrainedDetector(ImageDetector):
    """A detector with its weights on one or more devices, compiled once for each canvas size.

    Args:
        devices: of this process; by default its first.
    """

    def __init__(self, trained: TrainedModel, config: Config, devices: Sequence[jax.Device] | None = None):
        self.config = config
        self.classes = trained.classes
        self._mesh = make_mesh(jax.local_devices()[:1] if devices is None else devices)
        self._step = compile_detect_step(trained.model, config, self._mesh)
        self._weights = jax.device_put((trained.params, trained.batch_stats), replicated(self._mesh))

    def detect_batches(self, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
        """Yield the detections of each image of the batches, which have a multiple of the devices in rows."""
        params, batch_stats = self._weights
        return detect_batches(self._step, params, batch_stats, batches, self._mesh)

    def _found(self, images: Iterable[tuple[int, Image]], rows: int, views: Views) -> Iterator[ImageDetections]:
        data = self.config.data

        def read(numbered: tuple[int, Image]) -> tuple[int, list[View]]:
            index, image = numbered
            return index, views.of(to_pixels(image, data.bit_depth), data)

        merger = ViewMerger(self.config.detect)
        samples = merger.samples(read_ahead(read, images, data.threads))
        return merger.merge(self.detect_batches(batch_by_canvas(samples, rows)))


class ExportedDetector(ImageDetector):
    """A program of `tood export` on the default device. A program for one number of images always gets that many."""

    def __init__(self, opened: ExportedFolder):
        self.config, self.classes = opened.config, opened.classes
        self._run, self._rows = run_of(opened)

    def _found(self, images: Iterable[tuple[int, Image]], rows: int, views: Views) -> Iterator[ImageDetections]:
        if not views.is_one:
            raise ConfigError("tiles and tta are not parts of an exported program: use the checkpoint for them.")
        data = self.config.data

        def read(numbered: tuple[int, Image]) -> tuple[int, np.ndarray]:
            return numbered[0], to_pixels(numbered[1], data.bit_depth)

        return detect_images(self._run, data, read_ahead(read, images, data.threads), self._rows or rows)


def load(checkpoint: str | Path, step: int | Literal["best", "latest"] = "best") -> ImageDetector:
    """Load a trained detector from a checkpoint, with the config that is stored in it.

    Args:
        checkpoint: the run's folder (runs/NAME), the folder of one step, a folder of `tood export`, or a model of
            `tood push`: its folder or hf://USER/REPO[@REVISION].
        step: of a run, the number of a saved step; "latest"; or "best" by train.best.

    Raises:
        CheckpointError: there is no complete checkpoint, its arrays do not fit its config, or it can't be downloaded.
        ConfigError: the stored config is invalid.
    """
    opened, config = open_with_config(checkpoint, step)
    if isinstance(opened, ExportedFolder):
        return ExportedDetector(opened)
    return TrainedDetector(load_trained_model(opened, config), config)


def open_with_config(checkpoint: str | Path, step: int | Literal["best", "latest"]) -> tuple[Checkpoint, Config]:
    """Return a checkpoint and the config that is stored in it; arguments and errors are those of `load`."""
    opened = open_trained(checkpoint, step, log=_LOGGER.info, warn=_LOGGER.warning)
    config, notes = stored_config(opened.about.get("config"), opened.folder)
    for note in notes:
        _LOGGER.warning(note)
    return opened, config


def load_trained_model(checkpoint: Checkpoint, config: Config, averaged: bool = True) -> TrainedModel:
    """Return the model of a checkpoint with the weights to evaluate: the moving average if the checkpoint has one.

    Args:
        averaged: False for the weights that training goes on with.

    Raises:
        CheckpointError: the checkpoint has no classes, its leaves differ from the model's (which is found before any is
            read), or leaves have NaN or infinite values.
    """
    classes = tuple(ClassInfo(entry["id"], entry["name"]) for entry in checkpoint.about.get("classes") or ())
    if not classes:
        raise CheckpointError(f"{checkpoint.folder} doesn't name the classes that it was trained on.")
    weights = "ema" if averaged and "ema" in checkpoint.groups else "params"
    groups = [weights, *(group for group in ["batch_stats"] if group in checkpoint.groups)]
    model = build_model(config, len(classes))
    _check_shapes(checkpoint, model, groups)
    arrays = checkpoint.arrays(*groups)
    check_finite(named_leaves(arrays), checkpoint.folder)
    return TrainedModel(model, arrays[weights], arrays.get("batch_stats", {}), classes)


def _check_shapes(checkpoint: Checkpoint, model: Detector, groups: list[str]) -> None:
    """Compare the checkpoint's table of leaves with the model: an untrusted checkpoint may have any shapes."""
    leaves = {
        f"params/{name.partition('/')[2]}" if name.startswith(f"{groups[0]}/") else name: leaf
        for name, leaf in checkpoint.leaves.items()
        if name.partition("/")[0] in groups
    }
    expected = {
        name: {"shape": list(shape), "dtype": leaves[name]["dtype"] if name in leaves else "float32"}
        for name, shape in variable_shapes(model).items()
    }
    check_same_leaves(leaves, expected, str(checkpoint.folder))
