"""A trained detector in Python: `detector = tood_jax.load("runs/mine")`, then `detector("street.jpg")`."""

import logging
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from tood_jax.checkpoint.reader import check_same_leaves, named_leaves
from tood_jax.checkpoint.store import Checkpoint, CheckpointError, open_checkpoint
from tood_jax.config import Config
from tood_jax.config.validation import stored_config
from tood_jax.data.dataset import ClassInfo, class_names
from tood_jax.data.errors import DataError
from tood_jax.data.image_io import decode_image
from tood_jax.data.preprocess import single_image_batch
from tood_jax.distributed.sharding import make_mesh, replicated
from tood_jax.evaluation.predict import ImageDetections, compile_detect_step, detect_batches
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


class TrainedDetector:
    """A detector with its weights on one device, compiled once for each canvas size."""

    def __init__(self, trained: TrainedModel, config: Config):
        self.config = config
        self.classes = trained.classes
        """Category id and name of each label, in the order of the labels."""
        self._mesh = make_mesh(jax.devices()[:1])
        self._step = compile_detect_step(trained.model, config, self._mesh)
        self._weights = jax.device_put((trained.params, trained.batch_stats), replicated(self._mesh))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label."""
        return class_names(self.classes)

    def __call__(self, image: str | Path | np.ndarray) -> ImageDetections:
        """Detect objects in an image.

        Args:
            image: the path of an image file, or uint8 RGB values [height, width, 3].

        Returns:
            The detections, best first: boxes [k, 4] xyxy in pixels of the image, scores [k] in 0–1 and labels [k],
            which are positions in `class_names`.

        Raises:
            DataError: the file cannot be read, or the array is not uint8 [height, width, 3].
        """
        return self.detect(single_image_batch(self._pixels(image), self.config.data))

    def detect(self, batch: Batch) -> ImageDetections:
        """Return the detections of a batch of one image, as `single_image_batch` makes it."""
        params, batch_stats = self._weights
        (found,) = detect_batches(self._step, params, batch_stats, [batch], self._mesh)
        return found

    def _pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray):
            return decode_image(image, bit_depth=self.config.data.bit_depth)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise DataError(
                f"an image must be uint8 RGB values [height, width, 3], not {image.dtype} {list(image.shape)}."
            )
        return image


def load(checkpoint: str | Path, step: int | Literal["best", "latest"] = "best") -> TrainedDetector:
    """Load a trained detector from a checkpoint, with the config that is stored in it.

    Args:
        checkpoint: the run's folder (runs/NAME) or the folder of one step.
        step: the number of a saved step; "latest"; or "best" by AP.

    Raises:
        CheckpointError: there is no complete checkpoint, or its arrays do not fit its config.
        ConfigError: the stored config is invalid.
    """
    opened = open_checkpoint(checkpoint, step, log=_LOGGER.warning)
    config, notes = stored_config(opened.about.get("config"), opened.folder)
    for note in notes:
        _LOGGER.warning(note)
    return TrainedDetector(load_trained_model(opened, config), config)


def load_trained_model(checkpoint: Checkpoint, config: Config) -> TrainedModel:
    """Return the model of a checkpoint with the weights to evaluate: the moving average if the checkpoint has one.

    Raises:
        CheckpointError: the checkpoint has no classes, its leaves differ from the model's (which is found before any is
            read), or leaves have NaN or infinite values.
    """
    classes = tuple(ClassInfo(entry["id"], entry["name"]) for entry in checkpoint.about.get("classes") or ())
    if not classes:
        raise CheckpointError(f"{checkpoint.folder} doesn't name the classes that it was trained on.")
    weights = "ema" if "ema" in checkpoint.groups else "params"
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
