"""What all networks share: convolutions, norms, predictors, the output of heads, and layers in sequence.

Maps are NHWC. Parameters are float32; `dtype` is the compute type.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from tood_jax.ops.conv.conv2d import conv2d
from tood_jax.ops.group_norm import EPSILON, group_norm
from tood_jax.ops.image_area import Mask
from tood_jax.ops.t_head.level_maps import LevelMaps
from tood_jax.ops.t_head.norm_relu import norm_relu
from tood_jax.ops.t_head.reduction import Pointwise

Dtype = Any
PRIOR_LOGIT = float(-np.log((1 - 0.01) / 0.01))  # logits start at a probability of 0.01


class HeadMaps(NamedTuple):
    """Predictions of a head, float32, for n locations with A predictions each (1, or one per anchor)."""

    scores: Float[Array, "b n ac"]  # 0–1
    boxes: Float[Array, "b n a4"]  # xyxy in strides
    box_logits: Float[Array, "b n ar"]  # decode to the boxes before alignment, at scale 1
    quality: Float[Array, "b n a"] | None  # logits
    offsets: Float[Array, "b n 8"] | None  # (dy, dx) in locations at which each side is sampled; None without alignment


def normal(std: float) -> nn.initializers.Initializer:
    """Return the initializer of a normal distribution around 0."""
    return nn.initializers.normal(std)


def conv(
    channels: int,
    size: int,
    *,
    name: str,
    dtype: jax.typing.DTypeLike,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    kernel_init: nn.initializers.Initializer | None = None,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> nn.Conv:
    """Return a convolution layer, padded by size // 2 on every side (the padding of PyTorch, also at stride 2)."""
    return nn.Conv(
        channels,
        (size, size),
        strides=(stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        conv_general_dilated=_conv_general_dilated,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init or nn.initializers.he_normal(),
        bias_init=bias_init,
        name=name,
    )


def _conv_general_dilated(x, kernel, strides, padding, *, feature_group_count=1, precision=None, **_):
    """Call `conv2d` as Flax calls `lax.conv_general_dilated`; dilations are 1 and maps NHWC throughout this project."""
    (stride, _), ((before, _), _) = strides, padding
    return conv2d(x, kernel, stride, before, feature_group_count, precision)


def predictor(channels: int, name: str, dtype: Dtype, *, size: int = 3, std: float = 0.01, bias: float = 0.0):
    """Return a convolution with a bias, as in the branches that predict."""
    start = nn.initializers.constant(bias)
    return conv(channels, size, name=name, dtype=dtype, bias=True, kernel_init=normal(std), bias_init=start)


def pointwise(convolution: nn.Conv, x: Float[Array, "b h w i"]) -> Pointwise:
    """Return kernel and bias of a bound convolution of x, in its compute type, to be applied by `reduce_features`."""
    if convolution.is_initializing():
        convolution(x)
    parameters = convolution.variables["params"]
    return Pointwise(parameters["kernel"].astype(convolution.dtype), parameters["bias"].astype(convolution.dtype))


class Norm(nn.Module):
    """BatchNorm with fixed or with batch statistics, or GroupNorm.

    Attributes:
        kind: "frozen_batch" (running statistics always), "batch" (statistics over the global batch when training)
            or "group".
        groups: of the GroupNorm; must divide the channels.
        zero_scale: start with scale 0, so that a residual branch starts at 0.
    """

    kind: str
    groups: int = 32
    dtype: Dtype = jnp.float32
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False, inside: Mask = None):
        """Return the normalised map; statistics are those of the images' areas `inside`."""
        scale_init = nn.initializers.zeros_init() if self.zero_scale else nn.initializers.ones_init()
        if self.kind == "group":
            scale, bias = ScaleAndBias(scale_init, name="norm")(x.shape[-1])
            return group_norm(x.astype(self.dtype), scale, bias, self.groups, inside)
        return nn.BatchNorm(
            use_running_average=not (train and self.kind == "batch"),
            momentum=0.9,
            epsilon=EPSILON,
            dtype=self.dtype,
            scale_init=scale_init,
            name="norm",
        )(x, mask=inside)


class ScaleAndBias(nn.Module):
    """The parameters of a norm."""

    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
        scale = self.param("scale", self.scale_init, (channels,))
        return scale, self.param("bias", nn.initializers.zeros_init(), (channels,))


class GroupNormReLU(nn.Module):
    """GroupNorm and ReLU of level maps, after interactive layers and in task decompositions."""

    groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: LevelMaps) -> LevelMaps:
        scale, bias = ScaleAndBias(name="norm")(x.data.shape[-1])
        return norm_relu(x.map(lambda data: data.astype(self.dtype), keeps_zero=True), scale, bias, self.groups)


def conv_and_norm(convolution: nn.Module, norm: Norm, x: Array, train: bool = False, inside: Mask = None) -> Array:
    """Return norm(convolution(x)) of two bound modules; in bfloat16, fixed statistics are folded into the kernel.

    `inside` has the images' areas in the result. In float32 the two stay apart, as in the published code: folded, one
    golden gradient of X101 was off by 1.8e-3.
    """
    is_folded = norm.kind == "frozen_batch" and norm.dtype == jnp.bfloat16
    if not is_folded or convolution.is_initializing():
        return norm(convolution(x), train, inside)
    return folded_norm(convolution, norm, x)


def folded_norm(convolution: nn.Module, norm: Norm, x: Array) -> Array:
    """Return norm(convolution(x)) with the norm's fixed statistics and scale in the kernel, folded in float32.

    The map before the norm then need not be kept, and the gradient of the norm's scale comes from that of the kernel.

    Raises:
        ValueError: the convolution has a bias, which would have to be scaled too.
    """
    parameters, affine = convolution.variables["params"], norm.variables["params"]["norm"]
    if "bias" in parameters:
        raise ValueError(f"{convolution.name} has a bias, so {norm.name} cannot be folded into it.")
    statistics = norm.variables["batch_stats"]["norm"]
    rate = affine["scale"] * lax.rsqrt(statistics["var"] + EPSILON)
    y: Any = convolution.clone().apply({"params": {**parameters, "kernel": parameters["kernel"] * rate}}, x)
    return y + (affine["bias"] - statistics["mean"] * rate).astype(y.dtype)


class _WithVariables:
    """An unbound module and its variables, called like the bound one; for `lax.scan` and `jax.checkpoint`."""

    def __init__(self, module: nn.Module, variables: Any):
        self._module, self._variables = module, variables

    def __call__(self, *arguments: Any) -> Any:
        return self._module.apply(self._variables, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def apply_in_sequence(
    function: Callable[[tuple, Any], Any],
    layers: Sequence[tuple[nn.Module, ...]],
    x: Any,
    *,
    scan_from: int,
    remat: bool,
) -> list[Any]:
    """Return x after each layer, where a layer is a tuple of bound modules that change no variables.

    Args:
        function: (layer, x) to the next x.
        scan_from: the layers from this one on are equal and run in one loop.
        remat: keep only the input of each layer for the backward pass.
    """
    if layers[0][0].is_initializing():
        scan_from, remat = len(layers), False

    def run_as(layer: tuple[nn.Module, ...]) -> Callable[[Any, Any], Any]:
        unbound = [module.clone() for module in layer]

        def run(x, variables):
            return function(tuple(_WithVariables(*pair) for pair in zip(unbound, variables, strict=True)), x)

        return jax.checkpoint(run) if remat else run

    def variables(layer: tuple[nn.Module, ...]) -> list[Any]:
        return [module.variables for module in layer]

    outputs = []
    for layer in layers[:scan_from]:
        x = run_as(layer)(x, variables(layer)) if remat else function(layer, x)
        outputs.append(x)
    if scan_from < len(layers):
        run, equal = run_as(layers[scan_from]), stack_trees([variables(layer) for layer in layers[scan_from:]])
        _, stacked = lax.scan(lambda x, own: (run(x, own),) * 2, x, equal)
        outputs += [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(layers) - scan_from)]
    return outputs


def stack_trees(trees: list[Any]) -> Any:
    """Return trees of one structure and shape as one tree with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
