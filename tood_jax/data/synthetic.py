"""A small generated detection set, written as a COCO directory: textured shapes on cluttered backgrounds.

    python -m tood_jax.data.synthetic --out DIR --train 640 --val 100 --size 160 --seed 0

writes DIR/{train,val}/000001.jpg … and DIR/annotations/instances_{train,val}.json. Every image is a pure function of
(seed, split, number, arguments), so the same arguments give the same bytes on one machine.

Boxes are the extents of an object's whole silhouette inside the image, also where later objects lie over it.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ("disc", "box", "triangle", "star")
STAMP = "synthetic.json"
_FORMAT = 1  # raise it when the drawing changes, so that folders made before are recognised as other
_SUPERSAMPLING = 4  # silhouettes are drawn this much larger, then averaged: soft edges and boxes to a quarter pixel


@dataclass(frozen=True)
class ShapesConfig:
    """What is generated; equal values give equal files."""

    train_images: int = 640
    val_images: int = 100
    height: tuple[int, int] = (160, 160)
    """Range of image heights, pixels, both ends included."""
    width: tuple[int, int] = (160, 160)
    seed: int = 0
    max_objects: int = 5
    """Most objects an image."""
    overlap: float = 0.2
    """Largest share of an object (0–0.6) that later objects may hide."""
    min_side: float = 16.0
    """Smallest longer side of an object, pixels; the largest is half the image's shorter side."""
    empty_share: float = 0.04
    """Share of images without any object."""
    gray_share: float = 0.08
    """Share of images without colour."""


def write_shapes(folder: str | Path, config: ShapesConfig | None = None) -> bool:
    """Write the set into `folder`; return False, touching nothing, if it is already there with these arguments.

    The folder appears whole or not at all: it is made under a temporary name beside it and then renamed.
    Raises ValueError if the arguments make no sense or `folder` exists and holds something else.
    """
    config = config or ShapesConfig()
    _check(config)
    folder = Path(folder).absolute()
    stamp = json.dumps({"format": _FORMAT, **dataclasses.asdict(config)}, indent=1)
    if (folder / STAMP).is_file() and (folder / STAMP).read_text() == stamp:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and does not hold this generated set: remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for number, (split, count) in enumerate((("train", config.train_images), ("val", config.val_images))):
            _write_split(temporary, split, number, count, config)
        (temporary / STAMP).write_text(stamp)
        os.replace(temporary, folder)  # onto nothing, or onto an empty folder
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def draw_image(config: ShapesConfig, split: int, number: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray, float]]]:
    """One image [h, w, 3] uint8 RGB and its objects: (label, box xyxy in pixels, area in pixels)."""
    rng = np.random.default_rng([config.seed, split, number])
    height = int(rng.integers(config.height[0], config.height[1] + 1))
    width = int(rng.integers(config.width[0], config.width[1] + 1))
    gray = rng.random() < config.gray_share
    canvas = _background(rng, height, width)
    if gray:
        canvas[:] = _luma(canvas)[..., None]
    wanted = 0 if rng.random() < config.empty_share else int(rng.integers(1, config.max_objects + 1))
    objects: list[tuple[int, np.ndarray, float]] = []
    visible: list[np.ndarray] = []  # one [h, w] share of each pixel that is still seen, an object
    for _ in range(wanted):
        placed = _place(rng, visible, [item[2] for item in objects], height, width, config)
        if placed is None:
            continue  # no room left: fewer objects rather than hidden ones
        label, coverage, box = placed
        visible = [seen * (1 - coverage) for seen in visible] + [coverage]
        objects.append((label, box, float(coverage.sum())))
        paint = _texture(rng, height, width, _contrasting(rng, canvas[coverage > 0.5].mean(axis=0), gray))
        if gray:
            paint[:] = _luma(paint)[..., None]
        canvas += coverage[..., None] * (paint - canvas)
    canvas *= _lighting(rng, height, width)[..., None]
    noise = rng.normal(0, rng.uniform(1, 7), (height, width, 1 if gray else 3))
    return np.clip(canvas + noise + 0.5, 0, 255).astype(np.uint8), objects


def _check(config: ShapesConfig) -> None:
    if config.train_images < 1 or config.val_images < 1 or config.max_objects < 1:
        raise ValueError("train_images, val_images and max_objects must be at least 1")
    for name in ("height", "width"):
        low, high = getattr(config, name)
        if not 4 * config.min_side <= low <= high:
            raise ValueError(f"{name} must be a range (low, high) of at least four times min_side, not ({low}, {high})")
    if not 0 <= config.overlap <= 0.6:
        raise ValueError(f"overlap must lie in 0–0.6, not {config.overlap}: a hidden object can't be told")


def _write_split(folder: Path, split: str, split_number: int, count: int, config: ShapesConfig) -> None:
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        image, objects = draw_image(config, split_number, number)
        name = f"{number:06d}.jpg"
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append({"id": number, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for label, (x0, y0, x1, y1), area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "area": round(area, 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))


def _place(
    rng: np.random.Generator,
    visible: list[np.ndarray],
    areas: list[float],
    height: int,
    width: int,
    config: ShapesConfig,
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """A new object (label, coverage [h, w] 0–1, box xyxy) that leaves all earlier ones visible enough, or None."""
    label = int(rng.integers(len(CLASSES)))
    side = math.exp(rng.uniform(math.log(config.min_side), math.log(min(height, width) / 2)))
    for _ in range(20):
        outline = _outline(rng, CLASSES[label])
        extent = outline.max(axis=0) - outline.min(axis=0)
        outline = (outline - outline.min(axis=0) - extent / 2) * (side / extent.max())
        # At most a fifth of the extent may lie outside the image, a side: a cut corner tells no class.
        margin = 0.3 * side * extent / extent.max()
        centre = rng.uniform(margin, np.array([width, height]) - margin)
        coverage, box = _rasterize(outline + centre, height, width)
        if all(
            (seen * (1 - coverage)).sum() >= (1 - config.overlap) * area
            for seen, area in zip(visible, areas, strict=True)
        ):
            return label, coverage, box
    return None


def _outline(rng: np.random.Generator, name: str) -> np.ndarray:
    """A randomly turned outline of the class, [points, 2] (x, y), any size."""
    if name == "disc":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angles), rng.uniform(0.65, 1) * np.sin(angles)], axis=1)
    elif name == "box":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.5, 1)]
    elif name == "triangle":
        angles = np.deg2rad([90, 210, 330]) + rng.uniform(-0.22, 0.22, 3)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:  # a star of five points
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.48))
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _rasterize(outline: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [h, w] float32 0–1 of an outline (pixels) and the box xyxy of its part inside the image."""
    s = _SUPERSAMPLING
    fine = np.zeros((height * s, width * s), np.uint8)
    points = np.round((outline * s - 0.5) * 16).astype(np.int32)  # pixel centres lie at half coordinates
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=4)
    coverage = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    rows, columns = np.flatnonzero(fine.any(axis=1)), np.flatnonzero(fine.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64) / s
    return coverage, box


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A muted background [h, w, 3] float32 0–255: gradient, cloudy noise, soft blobs, thin lines."""
    base = _color(rng, saturation=(0.0, 0.45), value=(0.25, 0.85))
    canvas: np.ndarray = np.broadcast_to(base, (height, width, 3)).astype(np.float32).copy()
    canvas += _lighting(rng, height, width)[..., None] * 60 - 60
    for cells, strength in ((3, 22), (9, 12), (40, 7)):
        canvas += rng.uniform(0.3, 1) * strength * _cloud(rng, height, width, cells, channels=3)
    clutter = canvas.copy()
    for _ in range(rng.integers(0, 6)):  # soft blobs: blurred so far that they have no silhouette
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        color = base + rng.uniform(-45, 45, 3)
        cv2.circle(clutter, centre, int(rng.integers(6, max(7, min(height, width) // 6))), color.tolist(), -1)
    clutter = cv2.GaussianBlur(clutter, (0, 0), min(height, width) / 28)
    canvas += 0.8 * (clutter - cv2.GaussianBlur(canvas, (0, 0), min(height, width) / 28))
    for _ in range(rng.integers(0, 9)):
        ends = rng.integers(0, [width, height], (2, 2))
        color = base + rng.uniform(-50, 50)
        cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), color.tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    return np.clip(canvas, 0, 255)


def _texture(rng: np.random.Generator, height: int, width: int, color: np.ndarray) -> np.ndarray:
    """A fill [h, w, 3] float32 around `color`: plain, gradient, stripes, checks or grain."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    kind = rng.integers(5)
    if kind == 0:
        pattern = np.zeros((height, width), np.float32)
    elif kind == 1:
        pattern = np.sin(along * (2 * np.pi / (6 * period)))
    elif kind == 2:
        pattern = np.clip(2 * np.sin(along * (2 * np.pi / period)), -1, 1)
    elif kind == 3:
        pattern = np.clip(3 * np.sin(along * (np.pi / period)) * np.sin(across * (np.pi / period)), -1, 1)
    else:
        pattern = _cloud(rng, height, width, 30, channels=1)[..., 0]
    strength = rng.uniform(12, 34)
    return np.clip(color + strength * pattern[..., None], 0, 255)


def _contrasting(rng: np.random.Generator, behind: np.ndarray, gray: bool) -> np.ndarray:
    """A vivid colour that stands off from `behind` (both 0–255 RGB); in brightness too where there is no colour."""
    best, best_distance = behind, -1.0
    for _ in range(8):
        color = _color(rng, saturation=(0.25, 1.0), value=(0.2, 1.0))
        brightness = abs(float(_luma(color) - _luma(behind)))
        distance = 2 * brightness if gray else max(brightness, 0.6 * float(np.linalg.norm(color - behind)))
        if distance > 75:
            return color
        if distance > best_distance:
            best, best_distance = color, distance
    return best


def _color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """A random colour, RGB 0–255 float32 [3]."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> np.ndarray:
    """Smooth noise [h, w, channels] in about -1…1 with `cells` hills across."""
    grid = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def _lighting(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Brightness [h, w] float32 that falls off in one direction, 0.7–1.3."""
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    turn, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    return 1 + strength * (x * np.cos(turn) + y * np.sin(turn)).astype(np.float32)


def _luma(color: np.ndarray) -> np.ndarray:
    return color @ np.array([0.299, 0.587, 0.114], np.float32)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Generate a small detection set of textured shapes (COCO format).")
    default = ShapesConfig()
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--train", type=int, default=default.train_images, help="training images")
    parser.add_argument("--val", type=int, default=default.val_images, help="validation images")
    parser.add_argument("--size", type=int, nargs="+", default=[160], help="side, or smallest and largest side, pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--max-objects", type=int, default=default.max_objects, help="most objects an image")
    parser.add_argument("--overlap", type=float, default=default.overlap, help="largest hidden share of an object")
    parser.add_argument("--min-side", type=float, default=default.min_side, help="longer side of the smallest, pixels")
    given = parser.parse_args(argv)
    sides = (min(given.size), max(given.size))
    config = ShapesConfig(
        given.train, given.val, sides, sides, given.seed, given.max_objects, given.overlap, given.min_side
    )
    try:
        made = write_shapes(given.out, config)
    except ValueError as error:
        parser.error(str(error))
    total = config.train_images + config.val_images
    print(f"{given.out}: {total} images written" if made else f"{given.out}: already there, nothing to do")


if __name__ == "__main__":
    main()
