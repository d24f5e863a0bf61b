"""Normalisation as every network here uses it, what folds it into a convolution, and small helpers.

Maps are NHWC. Parameters are float32; `dtype` is the compute type.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tood_jax.networks.fusion import computed_once
from tood_jax.networks.group_norm import EPSILON, group_norm

Dtype = Any


class Norm(nn.Module):
    """BatchNorm with fixed or with batch statistics, or GroupNorm.

    Attributes:
        kind: "frozen_batch" (running statistics always), "batch" (statistics over the global batch when training)
            or "group".
        groups: of the GroupNorm; must divide the channels.
        zero_scale: start with scale 0, so that a residual branch starts as nothing.
    """

    kind: str
    groups: int = 32
    dtype: Dtype = jnp.float32
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        scale_init = nn.initializers.zeros_init() if self.zero_scale else nn.initializers.ones_init()
        if self.kind == "group":
            return GroupNorm(self.groups, self.dtype, scale_init, name="norm")(x)
        return nn.BatchNorm(
            use_running_average=not (train and self.kind == "batch"),
            momentum=0.9,
            epsilon=EPSILON,
            dtype=self.dtype,
            scale_init=scale_init,
            name="norm",
        )(x)


class GroupNorm(nn.Module):
    """`group_norm` with its parameters."""

    groups: int
    dtype: Dtype
    scale_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Float[Array, "b h w f"]) -> Float[Array, "b h w f"]:
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        return group_norm(x.astype(self.dtype), scale, bias, self.groups)


def conv_and_norm(convolution: nn.Module, norm: Norm, x: Array, train: bool = False) -> Array:
    """norm(convolution(x)) of two bound modules; in bfloat16, fixed statistics are folded into the kernel.

    In float32 the two stay apart, as in the published code: folded, one golden gradient of X101 was 1.8e-3 off.
    """
    is_folded = norm.kind == "frozen_batch" and norm.dtype == jnp.bfloat16
    if not is_folded or convolution.is_initializing():
        return norm(convolution(x), train)
    return folded_norm(convolution, norm, x)


def folded_norm(convolution: nn.Module, norm: Norm, x: Array) -> Array:
    """norm(convolution(x)) with the norm's fixed statistics and scale in the kernel, folded in float32.

    The map before the norm then need not be kept, and the gradient of the norm's scale comes from the kernel's, without
    another look at the map.
    """
    parameters, affine = convolution.variables["params"], norm.variables["params"]["norm"]
    statistics = norm.variables["batch_stats"]["norm"]
    rate = affine["scale"] * lax.rsqrt(statistics["var"] + EPSILON)
    apply, _ = pure(convolution)
    y = apply({"params": {**parameters, "kernel": parameters["kernel"] * rate}}, x)
    return y + (affine["bias"] - statistics["mean"] * rate).astype(y.dtype)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0). Its gradient looks at what came out, which the next layer keeps anyway, not at what went in.

    So nobody computes the input again for it. Reverse-mode only.
    """
    return nn.relu(x)


def _relu_forward(x):
    # XLA turns max(x, 0) > 0 into x > 0, and then keeps both maps and fuses neither with its convolution on GPUs.
    out = lax.platform_dependent(x, cuda=_relu_for_itself, rocm=_relu_for_itself, default=nn.relu)
    out = computed_once(out)
    return out, out


def _relu_for_itself(x):
    return lax.optimization_barrier(nn.relu(x))


relu.defvjp(_relu_forward, lambda out, cotangent: (jnp.where(out > 0, cotangent, 0),))


@jax.custom_jvp
def sigmoid_geometric_mean(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """√(σ(a)·σ(b)) of logits, 0–1 (paper equation 4), with finite gradients however large the logits are.

    Its derivatives are y·(1 − σ(a))/2 and y·(1 − σ(b))/2; the square root itself is never differentiated.
    """
    return jnp.exp(0.5 * (jax.nn.log_sigmoid(a) + jax.nn.log_sigmoid(b)))


@sigmoid_geometric_mean.defjvp
def _sigmoid_geometric_mean_jvp(primals, tangents):
    a, b = primals
    y = sigmoid_geometric_mean(a, b)
    return y, 0.5 * y * (jax.nn.sigmoid(-a) * tangents[0] + jax.nn.sigmoid(-b) * tangents[1])


def pure(module: nn.Module) -> tuple[Callable[..., Any], Any]:
    """A bound submodule as a function (variables, *arguments) and its variables, for `lax.scan` and `jax.checkpoint`.

    The function changes no variables.
    """
    unbound = module.clone()
    return unbound.apply, module.variables


def stack_trees(trees: list[Any]) -> Any:
    """Trees of one structure and shape as one tree with a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
