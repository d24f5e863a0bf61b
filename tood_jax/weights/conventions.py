"""Input conventions of backbones: order of the channels, mean and scale.

torchvision, timm and open-mmlab train on RGB from 0 to 1, less the mean (0.485, 0.456, 0.406), over the standard
deviation (0.229, 0.224, 0.225): on 0–255 that is the config's `pixel_mean` and `pixel_std`. Their BatchNorm has
ε = 1e-5 and their bottlenecks have the stride in the 3×3 convolution, as here. Caffe's ResNets (Detectron's R-50.pkl,
open-mmlab's *_caffe) take BGR from 0 to 255 less the mean only, and have the stride in the first 1×1 convolution.
"""

from collections.abc import Mapping

import numpy as np

from tood_jax.config import DataConfig
from tood_jax.weights.mapping import Tensors

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # 255 × (0.485, 0.456, 0.406)
IMAGENET_STD = (58.395, 57.12, 57.375)  # 255 × (0.229, 0.224, 0.225)
CONV1 = "params/backbone/conv1/kernel"
_BN1 = "batch_stats/backbone/norm1/norm"
_CAFFE_NAMES = ("caffe", "msra")


def swap_channels(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Return flax variables with the input channels of the first convolution reversed: BGR weights for RGB images."""
    swapped = dict(tensors)
    swapped[CONV1] = np.ascontiguousarray(tensors[CONV1][:, :, ::-1])
    return swapped


def convention_notes(where: str, tensors: Mapping[str, np.ndarray], data: DataConfig) -> list[str]:
    """Return notes on where a PyTorch file's backbone and the config's pixel values do not match; [] if they do.

    Args:
        where: the name of the file.
        tensors: the backbone as flax variables, by flax name.
        data: the config's data group.
    """
    if looks_like_caffe(where, tensors):
        return [
            f"{where} looks like one of Caffe's ResNets. They take BGR (convert with --channel_order=bgr) less the "
            f"mean only (set data.pixel_std=1,1,1), and have their stride in another convolution than this backbone: "
            f"expect worse results than with torchvision's."
        ]
    if np.allclose(data.pixel_mean, IMAGENET_MEAN, atol=0.1) and np.allclose(data.pixel_std, IMAGENET_STD, atol=0.1):
        return []
    return [
        f"the backbone of {where} was probably trained with data.pixel_mean={_format(IMAGENET_MEAN)} and "
        f"data.pixel_std={_format(IMAGENET_STD)}; the config has {_format(data.pixel_mean)} and "
        f"{_format(data.pixel_std)}."
    ]


def looks_like_caffe(where: str, tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether a file is from Caffe, by its name or by BatchNorm statistics that were folded away (Detectron)."""
    if any(name in where.lower().rpartition("/")[2] for name in _CAFFE_NAMES):
        return True
    mean, var = tensors.get(f"{_BN1}/mean"), tensors.get(f"{_BN1}/var")
    return mean is not None and var is not None and not mean.any() and np.allclose(var, 1, atol=1e-4)


def _format(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
