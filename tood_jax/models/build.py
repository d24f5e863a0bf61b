"""Build the network of a config: the only place where names in a config become layers."""

import jax

from tood_jax.config import Config
from tood_jax.models.detector import Detector, make_box_coder
from tood_jax.models.fpn import FPN
from tood_jax.models.layers import Dtype
from tood_jax.models.parallel_head import ParallelHead
from tood_jax.models.resnet import ResNet
from tood_jax.models.t_head import THead
from tood_jax.precision import DTYPES


def build_model(config: Config, num_classes: int, platform: str | None = None, dtype: Dtype | None = None) -> Detector:
    """Return the network of a config for C classes.

    Args:
        platform: "cpu", "gpu" or "tpu"; that of the default backend, if None. It decides only how the network is
            computed where the config leaves that open (train.pack_levels).
        dtype: compute type; that of train.precision, if None. float64 needs `jax.enable_x64`.
    """
    dtype = dtype or DTYPES[config.train.precision]
    packed = packs_levels(config, platform or jax.default_backend())
    return Detector(
        _backbone(config, dtype),
        _neck(config, dtype),
        _head(config, num_classes, dtype, packed),
        config.model.padding == "masked",
    )


def packs_levels(config: Config, platform: str) -> bool:
    """Return whether the head runs on all levels in one array (train.pack_levels)."""
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
        "box_coder": make_box_coder(head),
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
