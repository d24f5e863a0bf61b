"""A trained detector in Python: `model = tood_jax.load("runs/mine")`, then `model("street.jpg")`."""

from tood_jax.api.detections import Detections
from tood_jax.api.detector import TrainedDetector, TrainedModel, load, load_trained_model

__all__ = ["Detections", "TrainedDetector", "TrainedModel", "load", "load_trained_model"]
