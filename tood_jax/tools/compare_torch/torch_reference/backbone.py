"""ResNet-50/101 and ResNeXt with the stride in the 3×3 convolution, some deformable (He 2016; Xie 2017; Zhu 2019).

Maps are NCHW. BatchNorm always uses its running statistics.
"""

from jaxtyping import Float
from torch import Tensor, nn

from tood_jax.tools.compare_torch.torch_reference.deformable import DeformableConv2d

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with a shortcut; the 3×3 one has `inner` channels, the output 4 · `planes`."""

    def __init__(
        self, in_channels: int, planes: int, inner: int, *, stride: int, groups: int, deformable: bool, first: bool
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2: nn.Module
        if deformable:
            self.conv2 = DeformableConv2d(inner, inner, stride=stride, groups=groups)
        else:
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample: nn.Module = nn.Identity()
        if first:
            shortcut = nn.Conv2d(in_channels, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o ho wo"]:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (self.downsample(x) + y).relu()


class ResNet(nn.Module):
    """Images to (C2, C3, C4, C5).

    Args:
        depth: 50 or 101.
        groups: groups of the 3×3 convolutions (1; X101-64x4d: 64).
        width_per_group: channels per group (64; X101-64x4d: 4).
        deformable_stages: stages (1–4) whose 3×3 convolutions are deformable.
        width: channels of the stem.
        frozen_stages: number of first stages that are not trained, as the stem; -1 trains everything.
    """

    def __init__(
        self,
        depth: int,
        groups: int,
        width_per_group: int,
        deformable_stages: tuple[int, ...],
        width: int,
        frozen_stages: int,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        for stage, count in enumerate(BLOCKS[depth], start=1):
            planes = width * 2 ** (stage - 1)
            inner = planes * groups * width_per_group // 64
            blocks = []
            for i in range(count):
                blocks.append(
                    Bottleneck(
                        in_channels,
                        planes,
                        inner,
                        stride=2 if i == 0 and stage > 1 else 1,
                        groups=groups,
                        deformable=stage in deformable_stages,
                        first=i == 0,
                    )
                )
                in_channels = 4 * planes
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        stem = (self.conv1, self.bn1) if frozen_stages >= 0 else ()
        for frozen in (*stem, *(getattr(self, f"layer{stage}") for stage in range(1, frozen_stages + 1))):
            frozen.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ResNet":
        """Set the mode, but keep BatchNorm on its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        maps = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            maps.append(x)
        return tuple(maps)
