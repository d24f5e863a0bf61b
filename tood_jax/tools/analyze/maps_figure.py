"""The figure of `tood analyze maps`: boxes before and after alignment, and the maps of every level."""

import io
from typing import Any

import numpy as np

from tood_jax.config import ConfigError
from tood_jax.geometry.locations import STRIDES
from tood_jax.tools.analyze.inner_maps import InnerMaps
from tood_jax.types import Batch

CREATOR = "tood_jax analyze maps"  # in the metadata of the files
SIDES = ("left", "top", "right", "bottom")
_SIDE_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # distinct for colour-blind readers, too
_BEFORE, _AFTER, _OBJECT = "#ff8c1a", "#00e5ff", "#ffffff"
_ARROWS = 60  # locations per level whose offsets are drawn, those of the best scores
_SHOWN_BOXES = 10  # where the number of objects is not known
_DPI = 130


def draw_maps(maps: InnerMaps, batch: Batch, class_names: tuple[str, ...], title: str) -> dict[str, bytes]:
    """Return the figure as the content of a .png and of a .svg file.

    Args:
        maps: of the batch's only image.
        batch: the image and its objects, if they are known.
        class_names: by label.
        title: of the figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _new_figure()
    height, width = batch.sizes[0].tolist()
    image = batch.images[0, :height, :width]
    columns = _columns(maps, batch)
    cell_width, title_height = 2.3, 0.24  # inches
    cell_height = float(np.clip(cell_width * height / width, 1.0, 4))
    total_width = cell_width * len(columns)
    upper_height = min(total_width / 2 * height / width, 6.5)
    heights = [upper_height + title_height, 5 * (cell_height + title_height)]
    total_height = sum(heights) + 0.5
    figure.set_size_inches(total_width, total_height)
    borders = {"left": 0.03, "right": 0.995, "bottom": 0.005, "top": 1 - 0.55 / total_height}
    outer = figure.add_gridspec(2, 1, height_ratios=heights, hspace=0.04, **borders)
    upper = outer[0].subgridspec(1, 2, wspace=0.03)
    for panel, (name, boxes, color) in enumerate(
        (("boxes before alignment", maps.boxes_before, _BEFORE), ("boxes after alignment", maps.boxes, _AFTER))
    ):
        _draw_boxes(figure.add_subplot(upper[panel]), image, maps, batch, boxes, color, name, class_names)
    lower = outer[1].subgridspec(5, len(columns), wspace=0.03, hspace=title_height / cell_height)
    for row in range(5):
        for column, name in enumerate(columns):
            axes = figure.add_subplot(lower[row, column])
            _draw_level(axes, image, maps, name, row)
            if column == 0:
                axes.set_ylabel(f"P{row + 3}, stride {STRIDES[row]}", fontsize=8)
    scale = "Colours of a column: dark is 0, yellow its largest value over all levels."
    figure.suptitle(f"{title}\n{scale}", fontsize=9, y=0.998)
    return {suffix: _encode(figure, suffix) for suffix in (".png", ".svg")}


def _new_figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("The figure needs matplotlib: pip install 'tood_jax[report]'.") from None
    figure = Figure(dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _columns(maps: InnerMaps, batch: Batch) -> list[str]:
    aligned = maps.alignment is not None
    annotated = bool(batch.gt_mask[0].any())
    names = {"P": True, "M": aligned, "score": True, "IoU": annotated, "offsets": aligned, "assignment": annotated}
    return [name for name, is_shown in names.items() if is_shown]


def _draw_level(axes: Any, image: np.ndarray, maps: InnerMaps, name: str, level: int) -> None:
    """Draw one map of one level."""
    part = maps.pyramid.level_slices[level]
    values = {"P": maps.cls, "M": maps.alignment, "score": maps.score, "IoU": maps.iou}.get(name)
    _show(axes, image, dim=values is None)
    score = "√(P·M)" if maps.alignment is not None else "score"
    title = {"score": score, "offsets": "offsets O"}.get(name, name)
    if values is not None:
        _draw_values(axes, maps, values, level)
        largest = values[part][maps.valid[part]].max(initial=0)
        title += f", max {largest:.2f}"
    elif name == "offsets":
        _draw_offsets(axes, maps, part)
    else:
        _draw_assignment(axes, maps, part)
        title = f"{int((maps.assignment.gt_index[part] >= 0).sum())} positives"
    axes.set_title(title, fontsize=8, pad=2)
    _limit(axes, image)


def _draw_values(axes: Any, maps: InnerMaps, values: np.ndarray, level: int) -> None:
    """Draw the largest value of each location of a level over the image."""
    rows, columns = maps.pyramid.shapes[level]
    part, stride = maps.pyramid.level_slices[level], STRIDES[level]
    inside = maps.valid[part].reshape(rows, columns, -1).all(axis=-1)
    grid = np.where(inside, values[part].reshape(rows, columns, -1).max(axis=-1), np.nan)
    extent = (-stride / 2, (columns - 0.5) * stride, (rows - 0.5) * stride, -stride / 2)
    largest = values[maps.valid].max(initial=1e-6)
    axes.imshow(grid, extent=extent, vmin=0, vmax=largest, cmap="viridis", alpha=0.75, interpolation="nearest")


def _draw_offsets(axes: Any, maps: InnerMaps, part: slice) -> None:
    """Draw from each of the best locations four arrows to the places where the sides of its box are sampled."""
    assert maps.offsets is not None
    score = np.where(maps.valid[part], maps.score[part], -1)
    best = np.argsort(-score, kind="stable")[:_ARROWS]
    best = best[score[best] > 0]
    x, y = maps.pyramid.points[part][best].T
    for side, color in enumerate(_SIDE_COLORS):
        dy, dx = maps.offsets[part][best, side].T
        axes.quiver(x, y, dx, dy, color=color, angles="xy", scale_units="xy", scale=1, width=0.008, headwidth=4)
    if part.start == 0:
        handles = [
            axes.plot([], [], color=color, label=side)[0] for side, color in zip(SIDES, _SIDE_COLORS, strict=True)
        ]
        axes.legend(handles=handles, fontsize=5, loc="lower right", ncols=2, borderpad=0.2, handlelength=1)


def _draw_assignment(axes: Any, maps: InnerMaps, part: slice) -> None:
    """Draw the positives, coloured by object, larger for a larger t̂; the best of each object has its numbers."""
    assignment = maps.assignment
    index, soft_label = assignment.gt_index[part], assignment.soft_label[part]
    points = maps.pyramid.points[part]
    for m in np.unique(index[index >= 0]).tolist():
        own = np.flatnonzero(index == m)
        sizes = 4 + 40 * soft_label[own]
        axes.scatter(*points[own].T, s=sizes, color=object_color(m), edgecolor="black", linewidth=0.3)
        best = own[soft_label[own].argmax()]
        text = f"t {assignment.metric[part][best]:.2f}\nt̂ {soft_label[best]:.2f}"
        axes.annotate(
            text, points[best], (3, 3), textcoords="offset points", fontsize=4.5, color="white",
            bbox={"facecolor": "black", "alpha": 0.55, "pad": 0.6, "linewidth": 0},
        )  # fmt: skip


def object_color(index: int) -> tuple[float, float, float]:
    """Return the colour of an object, RGB 0–1."""
    from matplotlib import colormaps

    red, green, blue = colormaps["tab10"](index % 10)[:3]
    return red, green, blue


def _draw_boxes(
    axes: Any,
    image: np.ndarray,
    maps: InnerMaps,
    batch: Batch,
    boxes: np.ndarray,
    color: str,
    name: str,
    class_names: tuple[str, ...],
) -> None:
    """Draw objects (white, dashed), and the boxes of the locations that NMS keeps, joined with their location."""
    _show(axes, image)
    for box in batch.gt_boxes[0][batch.gt_mask[0]]:
        axes.add_patch(_rectangle(box, _OBJECT, linestyle=(0, (4, 3)), linewidth=1.0))
    shown = maps.detected[: int(batch.gt_mask.sum()) or _SHOWN_BOXES]
    for location in shown[::-1]:
        box, (x, y) = boxes[location], maps.pyramid.points[location]
        axes.add_patch(_rectangle(box, color, linewidth=1.4))
        corner = np.clip(box[:2], (0, 0.03 * image.shape[0]), (image.shape[1], image.shape[0]))
        axes.plot(x, y, "o", color=color, markersize=3.5, markeredgecolor="black", markeredgewidth=0.5)
        axes.annotate(
            f"{class_names[maps.label[location]]} {maps.score[location]:.2f}", corner, (1, 2),
            textcoords="offset points", fontsize=5.5, color="black", annotation_clip=True,
            bbox={"facecolor": color, "pad": 0.6, "linewidth": 0, "alpha": 0.85},
        )  # fmt: skip
    _limit(axes, image)
    objects = ", objects dashed" if batch.gt_mask.any() else ""
    axes.set_title(f"{name}: the {len(shown)} best with their locations{objects}", fontsize=8, pad=3)


def _rectangle(box: np.ndarray, color: str, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box.tolist()
    return Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, **style)


def _show(axes: Any, image: np.ndarray, dim: bool = False) -> None:
    """Show the image; dimmed, drawings on it are easier to see."""
    shown = image if not dim else (0.45 * image.mean(axis=-1, keepdims=True).repeat(3, axis=-1) + 70).astype(np.uint8)
    axes.imshow(shown, extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    _limit(axes, image)


def _limit(axes: Any, image: np.ndarray) -> None:
    axes.set_xlim(0, image.shape[1])
    axes.set_ylim(image.shape[0], 0)


def _encode(figure: Any, suffix: str) -> bytes:
    file = io.BytesIO()
    metadata = {"Software": CREATOR} if suffix == ".png" else {"Creator": CREATOR, "Date": None}
    figure.savefig(file, format=suffix[1:], metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    return file.getvalue()
