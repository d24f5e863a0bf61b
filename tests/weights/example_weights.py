"""Example weights: every tensor is a function of its PyTorch name, so no checkpoint is stored."""

import dataclasses
from functools import cache

import numpy as np

from tests.golden_models import golden_manifest
from tests.goldens.weights import named_array
from tood_jax.config import BackboneConfig, Config, HeadConfig, NeckConfig
from tood_jax.models.build import build_model
from tood_jax.weights.mapping import Naming, flax_name
from tood_jax.weights.mmdetection import tensor_table
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
    """Return an mmdetection state dict of a small detector, with BatchNorm's counters."""
    shapes, naming = variable_shapes(build_model(config, num_classes)), Naming(tensor_table(config))
    state_dict = {}
    for entry in naming.entries:
        name = entry.torch_name
        state_dict[name] = named_array(name, naming.shape_in_file(entry, shapes[flax_name(entry)]))
        if name.endswith("running_var"):
            state_dict[name.replace("running_var", "num_batches_tracked")] = np.asarray(7, np.int64)
    return state_dict


def published_state_dict(name: str) -> dict[str, np.ndarray]:
    """Return tensors with the names and shapes of a published checkpoint."""
    return {key: named_array(key, shape) for key, shape in golden_manifest(name).items()}


def imagenet_file(state_dict: dict[str, np.ndarray], classes: int = 10) -> dict[str, np.ndarray]:
    """Return the tensors of a file of torchvision or timm: the backbone without a prefix, and a classifier."""
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): array for name, array in state_dict.items() if name.startswith(prefix)}
    return {**tensors, "fc.weight": np.ones((classes, 4), np.float32), "fc.bias": np.ones(classes, np.float32)}


def with_backbone(config: Config, **changes) -> Config:
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **changes))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compare names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.ascontiguousarray(found[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name
