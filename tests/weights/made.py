"""Made weights: every tensor follows from its PyTorch name, so no checkpoint is stored."""

import dataclasses
from functools import cache

import numpy as np

from tests.golden_models import golden_manifest
from tests.goldens.weights import named_array
from tood_jax.build import build_model
from tood_jax.config import BackboneConfig, Config, HeadConfig, NeckConfig
from tood_jax.weights.mapping import Naming, name_of
from tood_jax.weights.mmdetection import table
from tood_jax.weights.shapes import DetectorShapes, detector_shapes, variable_shapes

SMALL = Config(
    name="small",
    backbone=BackboneConfig(depth=18, width=8),
    neck=NeckConfig(channels=16),
    head=HeadConfig(channels=16, num_convs=2, norm_groups=4),
)


@cache
def shapes_of(config: Config) -> DetectorShapes:
    return detector_shapes(lambda num_classes: build_model(config, num_classes))


def small_state_dict(num_classes: int = 4, config: Config = SMALL) -> dict[str, np.ndarray]:
    """An mmdetection state dict of a small detector, with BatchNorm's counters."""
    shapes, naming = variable_shapes(build_model(config, num_classes)), Naming(table(config))
    state_dict = {}
    for entry in naming.entries:
        name = entry.torch_name
        state_dict[name] = named_array(name, naming.shape(entry, shapes[name_of(entry)]))
        if name.endswith("running_var"):
            state_dict[name.replace("running_var", "num_batches_tracked")] = np.asarray(7, np.int64)
    return state_dict


def published_state_dict(name: str) -> dict[str, np.ndarray]:
    """Tensors under the names and with the shapes of a published checkpoint."""
    return {key: named_array(key, shape) for key, shape in golden_manifest(name).items()}


def imagenet_file(state_dict: dict[str, np.ndarray], classes: int = 10) -> dict[str, np.ndarray]:
    """What torchvision's and timm's files hold: the backbone without a prefix, and a classifier."""
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}
    return {**tensors, "fc.weight": np.ones((classes, 4), np.float32), "fc.bias": np.ones(classes, np.float32)}


def with_backbone(config: Config, **changes) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **changes))


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Equal names, types and bits."""
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].shape == array.shape, name
        assert np.ascontiguousarray(ours[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name
