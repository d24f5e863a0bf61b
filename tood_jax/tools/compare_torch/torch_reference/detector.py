"""The whole detector in PyTorch: `state_dict()` has the names and shapes of mmdetection's published checkpoints.

Axes: B images · N locations of all levels · C classes.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tood_jax.tools.compare_torch.torch_reference.backbone import ResNet
from tood_jax.tools.compare_torch.torch_reference.boxes import Locations, locations_of
from tood_jax.tools.compare_torch.torch_reference.head import TOODHead
from tood_jax.tools.compare_torch.torch_reference.losses import Predictions
from tood_jax.tools.compare_torch.torch_reference.neck import FPN


class Architecture(NamedTuple):
    """The parameters in which the seven published models differ, and sizes that tests reduce."""

    depth: int = 50
    groups: int = 1  # of the backbone's 3×3 convolutions
    width_per_group: int = 64
    deformable_stages: tuple[int, ...] = ()  # of the backbone, 1–4
    deformable_convs: int = 0  # of the head's tower
    anchor_based: bool = False
    width: int = 64  # of the backbone's stem
    frozen_stages: int = 1
    neck_channels: int = 256
    head_channels: int = 256
    num_convs: int = 6  # of the head's tower
    norm_groups: int = 32


class Maps(NamedTuple):
    """Intermediate results for a comparison."""

    c: tuple[Tensor, ...]  # C2…C5
    p: tuple[Tensor, ...]  # P3…P7
    head: tuple[tuple[Tensor, Tensor], ...]  # per level: scores [B, C, H, W] 0–1, boxes [B, 4, H, W] xyxy in strides


class TOOD(nn.Module):
    """Module from normalized images (NCHW, RGB) to the maps of all levels."""

    def __init__(self, architecture: Architecture, num_classes: int = 80):
        super().__init__()
        a = architecture
        self.backbone = ResNet(a.depth, a.groups, a.width_per_group, a.deformable_stages, a.width, a.frozen_stages)
        self.neck = FPN((8 * a.width, 16 * a.width, 32 * a.width), a.neck_channels)
        self.bbox_head = TOODHead(
            num_classes,
            in_channels=a.neck_channels,
            channels=a.head_channels,
            layers=a.num_convs,
            norm_groups=a.norm_groups,
            deformable_convs=a.deformable_convs,
            anchor_based=a.anchor_based,
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Maps:
        c = self.backbone(images)
        p = self.neck(c[1:])
        return Maps(c, p, self.bbox_head(p))


def flatten_levels(maps: Maps) -> tuple[Predictions, Locations]:
    """Return the head's maps with all levels in one row, and the locations."""
    scores, boxes = (
        torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        for levels in zip(*maps.head, strict=True)
    )
    shapes = [(scores.shape[2], scores.shape[3]) for scores, _ in maps.head]
    return Predictions(scores, boxes), locations_of(shapes, boxes)
