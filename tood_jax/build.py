"""The only place where names in a config become objects."""

import jax.numpy as jnp

from tood_jax.config import Config
from tood_jax.detectors.tood import Tood
from tood_jax.networks.fpn import FPN
from tood_jax.networks.resnet import ResNet
from tood_jax.networks.t_head import THead

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(config: Config, num_classes: int) -> Tood:
    """The network of a config for C classes."""
    dtype = DTYPES[config.train.precision]
    backbone, neck, head = config.backbone, config.neck, config.head
    return Tood(
        backbone=ResNet(
            depth=backbone.depth,
            groups=backbone.groups,
            width_per_group=backbone.width_per_group,
            width=backbone.width,
            norm=backbone.norm,
            norm_groups=head.norm_groups,
            frozen_stages=backbone.frozen_stages,
            dtype=dtype,
        ),
        neck=FPN(neck.channels, neck.norm, head.norm_groups, dtype),
        head=THead(
            num_classes,
            channels=head.channels,
            num_convs=head.num_convs,
            norm_groups=head.norm_groups,
            anchor_type=head.anchor_type,
            anchor_scale=head.anchor_scale,
            dtype=dtype,
        ),
    )
