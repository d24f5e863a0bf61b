"""Feature pyramid (Lin et al. 2017) with P6 and P7 by convolutions of stride 2 on P5 and P6."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvLayer(nn.Module):
    """A convolution with mmdetection's name `conv`."""

    def __init__(self, in_channels: int, channels: int, size: int, *, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FPN(nn.Module):
    """Module from (C3, C4, C5) to (P3, …, P7)."""

    def __init__(self, in_channels: tuple[int, int, int], channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvLayer(i, channels, 1) for i in in_channels)
        strides = (1, 1, 1, 2, 2)
        self.fpn_convs = nn.ModuleList(ConvLayer(channels, channels, 3, stride=stride) for stride in strides)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        merged = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in (1, 0):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[2:], mode="nearest")
        levels = [output(x) for output, x in zip(self.fpn_convs[:3], merged, strict=True)]
        for output in self.fpn_convs[3:]:
            levels.append(output(levels[-1]))
        return tuple(levels)
