"""Feature pyramid network (Lin et al. 2017) with P6 and P7 by stride-2 convolutions."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from tood_jax.models.layers import Dtype, Norm, conv
from tood_jax.ops.image_area import WHOLE, Mask, clear_outside
from tood_jax.ops.relu import relu


def upsample_nearest(x: Array, height: int, width: int) -> Array:
    """Return [B, height, width, C] from [B, h, w, C]: location i takes location ⌊i·h/height⌋."""
    if (height, width) == (2 * x.shape[1], 2 * x.shape[2]):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows = jnp.arange(height) * x.shape[1] // height
    columns = jnp.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


class FPN(nn.Module):
    """From (C3, C4, C5) to (P3, …, P7) of `channels` channels each. Attributes are explained in `config.NeckConfig`."""

    channels: int = 256
    norm: str = "none"
    extra_levels: str = "on_output"
    relu_before_p7: bool = False
    norm_groups: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Array, Array, Array], areas: tuple[Mask, ...] = WHOLE[3:]
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Return the pyramid, zero outside of the images' areas (`areas`, one mask per level)."""

        def layer(x, size, name, inside, stride=1):
            glorot = nn.initializers.glorot_uniform()
            plain = self.norm == "none"
            x = conv(self.channels, size, name=name, dtype=self.dtype, stride=stride, bias=plain, kernel_init=glorot)(x)
            if plain:
                return clear_outside(x, inside)
            return Norm(self.norm, self.norm_groups, self.dtype, name=f"{name}_norm")(x, inside=inside)

        merged = [layer(x, 1, f"lateral_{i}", areas[i]) for i, x in enumerate(maps)]
        for i in (1, 0):
            merged[i] = merged[i] + upsample_nearest(merged[i + 1], *merged[i].shape[1:3])
        levels = [layer(x, 3, f"output_{i}", areas[i]) for i, x in enumerate(merged)]
        on_p5 = self.extra_levels == "on_output"
        p6 = layer(levels[-1] if on_p5 else clear_outside(maps[-1], areas[2]), 3, "output_3", areas[3], 2)
        p7 = layer(relu(p6) if self.relu_before_p7 else p6, 3, "output_4", areas[4], 2)
        levels += [p6, p7]
        return tuple(levels)
