"""What is exported."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tood_jax.config import Config
from tood_jax.data.dataset import ClassInfo
from tood_jax.models.detector import Detector


class ExportedModel(NamedTuple):
    """A detector with its weights, classes and config."""

    model: Detector
    weights: Mapping[str, np.ndarray]  # float32 by flax name
    classes: tuple[ClassInfo, ...]
    config: Config
    step: int
