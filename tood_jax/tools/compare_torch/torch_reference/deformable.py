"""Bilinear sampling, deformable convolution (DCNv2) and sampling of box sides.

Axes: B images · C channels · H, W size of a map · G deformable groups · L sampled points. Coordinates are in pixels of
the map.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def sample(maps: Float[Tensor, "b g c h w"], rows: Float[Tensor, "b g l"], columns: Float[Tensor, "b g l"]) -> Tensor:
    """Return bilinear values [B, G, C, L] of the maps, each group at its own points; zeros outside."""
    height, width = maps.shape[-2:]
    flat = maps.flatten(-2)
    top, left = rows.detach().floor(), columns.detach().floor()
    down, right = rows - top, columns - left  # 0–1
    result: Tensor | float = 0.0
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            index = index.long()[:, :, None].expand(-1, -1, maps.shape[2], -1)  # [B, G, C, L]
            result = result + flat.gather(-1, index) * (row_weight * column_weight * inside)[:, :, None]
    assert isinstance(result, Tensor)
    return result


def sample_sides(boxes: Float[Tensor, "b 4 h w"], offsets: Float[Tensor, "b 8 h w"]) -> Float[Tensor, "b 4 h w"]:
    """Return each box side sampled at its own offset (TOOD, equation 6); `offsets` has (dy, dx) per side."""
    batch, sides, height, width = boxes.shape
    y, x = _grid(height, width, boxes)
    offsets = offsets.reshape(batch, sides, 2, height, width)
    rows, columns = (y + offsets[:, :, 0]).flatten(-2), (x + offsets[:, :, 1]).flatten(-2)  # [B, 4, H·W]
    return sample(boxes[:, :, None], rows, columns).reshape(boxes.shape)


def deformable_convolution(
    x: Float[Tensor, "b i h w"],
    offsets: Float[Tensor, "b gkk2 ho wo"],
    masks: Float[Tensor, "b gkk ho wo"],
    weight: Float[Tensor, "o ig kh kw"],
    *,
    stride: int = 1,
    groups: int = 1,
) -> Float[Tensor, "b o ho wo"]:
    """Modulated deformable convolution, padded by size // 2 (Zhu et al. 2019, equation 1), without a bias.

    Args:
        x: the input.
        offsets: (dy, dx) in pixels for each tap of the kernel, row by row, one deformable group after another.
        masks: factor 0–1 of each tap, in the same order.
        weight: the kernel.
        stride: stride of the convolution.
        groups: groups of the convolution.
    """
    batch, channels, _, _ = x.shape
    height, width = offsets.shape[-2:]
    size = weight.shape[-1]
    deformable_groups = masks.shape[1] // size**2
    offsets = offsets.reshape(batch, deformable_groups, size**2, 2, height, width)
    y, x_ = _grid(height, width, x)
    tap_y, tap_x = _grid(size, size, x)
    rows = y * stride - size // 2 + tap_y.reshape(-1, 1, 1) + offsets[:, :, :, 0]  # [B, G, K·K, H, W]
    columns = x_ * stride - size // 2 + tap_x.reshape(-1, 1, 1) + offsets[:, :, :, 1]
    maps = x.reshape(batch, deformable_groups, channels // deformable_groups, *x.shape[2:])
    taps = sample(maps, rows.flatten(2), columns.flatten(2))  # [B, G, I/G, K·K·H·W]
    taps = taps * masks.reshape(batch, deformable_groups, 1, -1)
    # The convolution is now a matrix product over (channel, tap), the same as a 1×1 convolution.
    taps = taps.reshape(batch, channels * size**2, height, width)
    return F.conv2d(taps, weight.reshape(weight.shape[0], -1, 1, 1), groups=groups)


class DeformableConv2d(nn.Module):
    """DCNv2 layer with mmcv's names: `weight`, and `conv_offset`, which predicts offsets and masks."""

    def __init__(
        self, in_channels: int, channels: int, *, stride: int = 1, groups: int = 1, deformable_groups: int = 1
    ):
        super().__init__()
        self.stride, self.groups, self.deformable_groups = stride, groups, deformable_groups
        self.weight = nn.Parameter(torch.empty(channels, in_channels // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight)
        self.conv_offset = nn.Conv2d(in_channels, deformable_groups * 27, 3, stride, padding=1)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)  # at first an ordinary convolution, halved by masks of 0.5

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o ho wo"]:
        offsets, masks = self.conv_offset(x).split([self.deformable_groups * 18, self.deformable_groups * 9], dim=1)
        return deformable_convolution(x, offsets, masks.sigmoid(), self.weight, stride=self.stride, groups=self.groups)


def _grid(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (row, column) of every pixel of a map, [H, W] each."""
    rows, columns = (torch.arange(side, dtype=like.dtype, device=like.device) for side in (height, width))
    return rows[:, None].expand(height, width), columns.expand(height, width)
