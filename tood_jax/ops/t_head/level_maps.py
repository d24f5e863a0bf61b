"""The maps of one or of all pyramid levels in one array, so that a shared network runs once, not five times.

    P3 P3 P3 P3 P3 P3 P3
    P3 P3 P3 P3 P3 P3 P3
    ·  ·  ·  ·  ·  ·  ·
    P4 P4 P4 ·  P5 · P6 …
    P4 P4 P4 ·  ·  · ·  ·

Between two levels is a gap of one location, wide enough for a 3×3 convolution whose input is zero there. `LevelMaps`
knows whether it is zero in the gaps and outside of the images' areas, and clears these before a convolution. An
operation that mixes locations in another way (a mean, sampling at offsets) works on `levels()`. At 800×1344 the array
has 13 % more locations than the levels.

Axes: B images · h, w locations of a level · H, W of the array · L levels · N locations of all levels in a row · F
channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from tood_jax.geometry.locations import Shapes
from tood_jax.ops.image_area import Mask


class Layout(NamedTuple):
    """Where each level is in the array, in locations; known when a program is traced."""

    shapes: Shapes  # (height, width) per level, P3 first
    corners: Shapes  # (row, column) of the level's first location
    height: int
    width: int

    def level_index(self) -> np.ndarray:
        """Return [H, W] int32: the level (0 for P3) of a location; −1 in the gaps."""
        levels = np.full((self.height, self.width), -1, np.int32)
        for index, ((height, width), (row, column)) in enumerate(zip(self.shapes, self.corners, strict=True)):
            levels[row : row + height, column : column + width] = index
        return levels

    def is_first_level(self) -> np.ndarray:
        """Return [H, 1, 1] bool: whether a row belongs to the first level, which shares its rows with no other."""
        return (np.arange(self.height) < self.shapes[0][0])[:, None, None]


def layout_of(shapes: Sequence[tuple[int, int]]) -> Layout:
    """Return the layout of levels of these (height, width): the first on top, the others side by side below it."""
    (height, width), *others = shapes
    corners, column = [(0, 0)], 0
    for _, level_width in others:
        corners.append((height + 1, column))
        column += level_width + 1
    below = max((level_height + 1 for level_height, _ in others), default=0)
    return Layout(tuple(shapes), tuple(corners), height + below, max(width, column - 1))


@partial(jax.tree_util.register_dataclass, data_fields=["data", "inside"], meta_fields=["layout", "is_cleared"])
@dataclass(frozen=True)
class LevelMaps:
    """Maps of some levels in one array; of one level it is the map itself."""

    data: Any  # [B, H, W, F]; with one axis more where a loop has stacked it
    layout: Layout
    inside: Any = None  # [B, H, W, 1] bool, the images' areas, False in the gaps; None where all of the levels counts
    is_cleared: bool = True  # zero in the gaps and outside of the images' areas

    @classmethod
    def join(cls, levels: Sequence[Float[Array, "b _ _ f"]], areas: Sequence[Mask] | None = None) -> "LevelMaps":
        """Return the maps of these levels, with zeros in the gaps.

        Args:
            areas: the images' areas in each level, outside of which `levels` are zero.
        """
        layout = layout_of([(x.shape[1], x.shape[2]) for x in levels])
        masks = [area for area in areas or () if area is not None]
        return cls(pack(levels, layout), layout, pack(masks, layout) if masks else None)

    def with_levels(self, levels: Sequence[Float[Array, "b _ _ f"]]) -> "LevelMaps":
        """Return other maps of the same images, which may be other than zero outside of the images' areas.

        Raises:
            ValueError: the maps have other sizes, so that the areas are not theirs.
        """
        joined = LevelMaps.join(levels)
        if self.inside is None:
            return joined
        if joined.layout != self.layout:
            raise ValueError("Maps of other sizes have other areas: join them with `LevelMaps.join(levels, areas)`.")
        return replace(joined, inside=self.inside, is_cleared=False)

    def convolve(self, convolution: Callable[[Any], Any]) -> "LevelMaps":
        """Return a convolution of each level.

        Args:
            convolution: a layer. One that reads more than the neighbouring locations, or has a stride, runs level by
                level.
        """
        if len(self.layout.shapes) > 1 and not _reads_neighbours_only(convolution):
            return self.with_levels([convolution(x) for x in self.cleared().levels()])
        data = convolution(self.cleared().data)
        if len(self.layout.shapes) == 1:
            return self.with_levels([data])
        return replace(self, data=data, is_cleared=False)

    def map(self, function: Callable[[Array], Array], *, keeps_zero: bool = False) -> "LevelMaps":
        """Return an elementwise function of the maps; `keeps_zero`: of 0 it is 0."""
        is_whole = len(self.layout.shapes) == 1 and self.inside is None
        return replace(self, data=function(self.data), is_cleared=is_whole or (keeps_zero and self.is_cleared))

    def cleared(self) -> "LevelMaps":
        """Return the same maps with zeros in the gaps and outside of the images' areas."""
        if self.is_cleared:
            return self
        return replace(self, data=clear(self.data, self.layout, self.inside), is_cleared=True)

    def levels(self) -> tuple[Float[Array, "b _ _ f"], ...]:
        """Return the map of each level."""
        return unpack(self.data, self.layout)

    def areas(self) -> tuple[Mask, ...]:
        """Return the images' areas in each level."""
        return (None,) * len(self.layout.shapes) if self.inside is None else unpack(self.inside, self.layout)

    def rows(self) -> Float[Array, "b n f"]:
        """Return all locations in a row, level by level."""
        return rows(self.levels())


def _reads_neighbours_only(convolution: Any) -> bool:
    size = getattr(convolution, "kernel_size", None)
    no_step = (None, 1, (1, 1))
    plain = getattr(convolution, "strides", 1) in no_step and getattr(convolution, "kernel_dilation", 1) in no_step
    return size is not None and max(size) <= 3 and plain


def level_counts(layout: Layout, inside: Mask) -> Float[Array, "#b l 1"]:
    """Return the number of locations of each level, or of those in each image's area, float32."""
    if inside is None:
        return jnp.asarray([height * width for height, width in layout.shapes], jnp.float32)[None, :, None]
    return level_sums(inside.astype(jnp.float32), layout, inside)


def rows(levels: Sequence[Shaped[Array, "b _ _ f"]]) -> Shaped[Array, "b n f"]:
    """Return the locations of these levels in a row."""
    flat = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels]
    return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=1)


def pack(levels: Sequence[Shaped[Array, "b _ _ f"]], layout: Layout) -> Shaped[Array, "b hh ww f"]:
    """Return the maps of levels in one array, with zeros in the gaps."""
    first = levels[0]
    if len(levels) == 1:
        return first
    data = jnp.zeros((first.shape[0], layout.height, layout.width, first.shape[-1]), first.dtype)
    for level, (row, column) in zip(levels, layout.corners, strict=True):
        data = lax.dynamic_update_slice(data, level, (0, row, column, 0))
    return data


def unpack(data: Shaped[Array, "b hh ww f"], layout: Layout) -> tuple[Shaped[Array, "b _ _ f"], ...]:
    """Return the map of each level."""
    if len(layout.shapes) == 1:
        return (data,)
    return tuple(
        data[:, row : row + height, column : column + width]
        for (height, width), (row, column) in zip(layout.shapes, layout.corners, strict=True)
    )


def clear(data: Float[Array, "b hh ww f"], layout: Layout, inside: Mask = None) -> Float[Array, "b hh ww f"]:
    """Return the array with zeros in the gaps, and outside of the images' areas where these are given."""
    return jnp.where((layout.level_index() >= 0)[..., None] if inside is None else inside, data, 0)


def level_sums(data: Float[Array, "b hh ww f"], layout: Layout, inside: Mask = None) -> Float[Array, "b l f"]:
    """Return the sum of each level over its locations, or over those in the images' areas.

    Rows first, those of the first level apart from those of the others: on TPUs this takes a third of the time that one
    mask per level takes, and reads the array once.
    """
    data, is_first = clear(data, layout, inside), layout.is_first_level()
    first, others = jnp.where(is_first, data, 0).sum(axis=1), jnp.where(is_first, 0, data).sum(axis=1)  # [B, W, F]
    columns = zip(layout.shapes[1:], layout.corners[1:], strict=True)
    below = [others[:, column : column + width].sum(axis=1) for (_, width), (_, column) in columns]
    return jnp.stack([first.sum(axis=1), *below], axis=1)


def broadcast_levels(values: Float[Array, "b l f"], layout: Layout) -> Float[Array, "b hh ww f"]:
    """Return the value of each level at all its locations; in the gaps, that of some level."""
    columns = np.arange(layout.width)[:, None]
    first = others = values[:, 0, None]  # [B, 1, F], others then [B, W, F]
    for index in range(1, len(layout.shapes)):
        others = jnp.where(columns >= layout.corners[index][1], values[:, index, None], others)
    return jnp.where(layout.is_first_level(), first[:, None], others[:, None])
