"""The only place where names in a config become objects."""

import jax
import jax.numpy as jnp

from tood_jax.config import Config
from tood_jax.detectors.detector import Detector, box_coding
from tood_jax.networks.fpn import FPN
from tood_jax.networks.layers import Dtype
from tood_jax.networks.parallel_head import ParallelHead
from tood_jax.networks.resnet import ResNet
from tood_jax.networks.t_head import THead

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(config: Config, num_classes: int, platform: str | None = None) -> Detector:
    """The network of a config for C classes.

    Args:
        platform: that it will run on, "cpu", "gpu" or "tpu"; the default backend's, if None. It decides how the network
            is computed where the config leaves that open, never what.
    """
    dtype = DTYPES[config.train.precision]
    packed = packs_levels(config, platform or jax.default_backend())
    return Detector(_backbone(config, dtype), _neck(config, dtype), _head(config, num_classes, dtype, packed))


def packs_levels(config: Config, platform: str) -> bool:
    """Does the head run on one canvas of all levels (train.pack_levels)?"""
    if config.head.kind != "t_head" or config.parallel.space > 1:
        return False
    return {"always": True, "never": False, "auto": platform == "tpu"}[config.train.pack_levels]


def _backbone(config: Config, dtype: Dtype) -> ResNet:
    backbone = config.backbone
    return ResNet(
        depth=backbone.depth,
        groups=backbone.groups,
        width_per_group=backbone.width_per_group,
        width=backbone.width,
        norm=backbone.norm,
        norm_groups=config.head.norm_groups,
        frozen_stages=backbone.frozen_stages,
        deformable_stages=backbone.deformable_stages,
        scan=config.train.scan_blocks,
        remat=config.train.remat == "blocks",
        dtype=dtype,
    )


def _neck(config: Config, dtype: Dtype) -> FPN:
    neck = config.neck
    return FPN(neck.channels, neck.norm, neck.extra_levels, neck.relu_before_p7, config.head.norm_groups, dtype)


def _head(config: Config, num_classes: int, dtype: Dtype, packed: bool) -> THead | ParallelHead:
    head = config.head
    shared = {
        "num_classes": num_classes,
        "coding": box_coding(head),
        "channels": head.channels,
        "num_convs": head.num_convs,
        "norm_groups": head.norm_groups,
        "alignment": head.alignment,
        "quality": head.quality != "none",
        "level_scales": head.level_scales,
        "remat": config.train.remat == "blocks",
        "dtype": dtype,
    }
    if head.kind == "t_head":
        return THead(**shared, deformable_convs=head.deformable_convs, packed=packed, scan=config.train.scan_blocks)
    return ParallelHead(**shared, norm=head.norm, tower_bias=head.tower_bias)
