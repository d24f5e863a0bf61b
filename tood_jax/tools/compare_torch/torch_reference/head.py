"""T-head (TOOD, section 3.1): interactive tower, layer attention, two tasks and their alignment.

Axes: B images · H, W size of a level · F channels of the tower · L interactive convolutions · C classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tood_jax.tools.compare_torch.torch_reference.boxes import deltas_to_xyxy
from tood_jax.tools.compare_torch.torch_reference.deformable import DeformableConv2d, sample_sides

ANCHOR_SCALE = 8.0  # side of a location's anchor in strides
NUM_LEVELS = 5


class NormedConv(nn.Module):
    """Convolution, GroupNorm, ReLU, with mmdetection's names `conv` and `gn`."""

    def __init__(self, in_channels: int, channels: int, size: int, norm_groups: int, *, deformable_groups: int = 0):
        super().__init__()
        self.conv: nn.Module
        if deformable_groups:
            self.conv = DeformableConv2d(in_channels, channels, deformable_groups=deformable_groups)
        else:
            self.conv = nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=False)
        self.gn = nn.GroupNorm(norm_groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(self.conv(x)).relu()


class TaskDecomposition(nn.Module):
    """Weight the tower's layers by attention, and reduce them to F channels (equations 2–4)."""

    def __init__(self, channels: int, layers: int, norm_groups: int):
        super().__init__()
        reduced = channels // 8
        self.layer_attention = nn.Sequential(
            nn.Conv2d(channels * layers, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, layers, 1), nn.Sigmoid()
        )
        self.reduction_conv = NormedConv(channels * layers, channels, 1, norm_groups)

    def forward(self, features: list[Tensor]) -> Float[Tensor, "b f h w"]:
        stacked = torch.cat(features, dim=1)
        weights = self.layer_attention(stacked.mean(dim=(2, 3), keepdim=True))  # [B, L, 1, 1]
        weighted = [weights[:, [i]] * feature for i, feature in enumerate(features)]
        return self.reduction_conv(torch.cat(weighted, dim=1))


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class TOODHead(nn.Module):
    """Module from (P3, …, P7) to scores [B, C, H, W], 0–1, and boxes [B, 4, H, W], xyxy in strides, per level.

    Args:
        num_classes: C.
        in_channels: channels of the pyramid.
        channels: F, channels of the tower.
        layers: L, convolutions of the tower.
        norm_groups: groups of every GroupNorm.
        deformable_convs: number of deformable convolutions at the start of the tower, with 4 deformable groups.
        anchor_based: boxes are deltas from anchors; otherwise distances from the location, by exp.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int,
        channels: int,
        layers: int,
        norm_groups: int,
        deformable_convs: int,
        anchor_based: bool,
    ):
        super().__init__()
        self.anchor_based = anchor_based
        self.inter_convs = nn.ModuleList(
            NormedConv(
                in_channels if i == 0 else channels,
                channels,
                3,
                norm_groups,
                deformable_groups=4 if i < deformable_convs else 0,
            )
            for i in range(layers)
        )
        self.cls_decomp = TaskDecomposition(channels, layers, norm_groups)
        self.reg_decomp = TaskDecomposition(channels, layers, norm_groups)
        self.tood_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.tood_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.cls_prob_module = _alignment(channels * layers, channels // 4, 1)
        self.reg_offset_module = _alignment(channels * layers, channels // 4, 8)
        self.scales = nn.ModuleList(Scale() for _ in range(NUM_LEVELS))

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple(self.level(x, scale) for x, scale in zip(levels, self.scales, strict=True))

    def level(self, x: Float[Tensor, "b f h w"], scale: nn.Module) -> tuple[Tensor, Tensor]:
        features = []
        for convolution in self.inter_convs:
            x = convolution(x)
            features.append(x)
        stacked = torch.cat(features, dim=1)

        logits = self.tood_cls(self.cls_decomp(features))
        alignment = self.cls_prob_module(stacked)  # [B, 1, H, W]
        boxes = self.decode(self.tood_reg(self.reg_decomp(features)), scale)
        return align(logits, alignment, boxes, self.reg_offset_module(stacked))

    def decode(self, sides: Float[Tensor, "b 4 h w"], scale: nn.Module) -> Float[Tensor, "b 4 h w"]:
        """Return the boxes, xyxy in strides, of the last convolution's output."""
        height, width = sides.shape[-2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = torch.stack([x, y]).to(sides)  # [2, H, W]
        if self.anchor_based:
            anchors = torch.cat([points - ANCHOR_SCALE / 2, points + ANCHOR_SCALE / 2])
            return deltas_to_xyxy(anchors.movedim(0, -1), scale(sides).movedim(1, -1)).movedim(-1, 1)
        distances = scale(sides.exp())  # left, top, right, bottom
        return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def align(
    logits: Float[Tensor, "b c h w"],
    alignment: Float[Tensor, "b 1 h w"],
    boxes: Float[Tensor, "b 4 h w"],
    offsets: Float[Tensor, "b 8 h w"],
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 4 h w"]]:
    """Return the aligned scores, 0–1, and the aligned boxes of a level."""
    # √(σ(P)·σ(M)) in logarithms, which do not underflow (equation 5)
    scores = (0.5 * (F.logsigmoid(logits) + F.logsigmoid(alignment))).exp()
    sampled = sample_sides(boxes, offsets)  # equation 6
    inverted = (sampled[:, :2] > sampled[:, 2:]).any(dim=1, keepdim=True)
    return scores, torch.where(inverted, boxes, sampled)


def _alignment(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
    )
