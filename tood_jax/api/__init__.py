"""What Python programs use: `tood_jax.load`, `train`, `evaluate`, `build_detector` and `load_config`."""

from tood_jax.api.detections import Detections
from tood_jax.api.detector import TrainedDetector, TrainedModel, load, load_trained_model
from tood_jax.api.evaluation import evaluate
from tood_jax.api.training import train
from tood_jax.config.files import load_config
from tood_jax.models.build import build_model as build_detector

__all__ = [
    "Detections",
    "TrainedDetector",
    "TrainedModel",
    "build_detector",
    "evaluate",
    "load",
    "load_config",
    "load_trained_model",
    "train",
]
