"""Generate a small detection data set of textured shapes on cluttered backgrounds, as a COCO directory.

    python -m tood_jax.data.synthetic --out DIR --train 640 --val 100 --size 160 --seed 0

writes DIR/{train,val}/000001.jpg … and DIR/annotations/instances_{train,val}.json. Every image is a pure function of
(seed, split, number, arguments), so the same arguments give the same bytes on the same machine.

A box encloses the part of an object's outline that lies inside the image, even if later objects cover some of it.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tood_jax.config.repeated_options import repeated_option
from tood_jax.untrusted.bounded_json import parse_json

CLASSES = ("disc", "box", "triangle", "star")
STAMP = "synthetic.json"
_FORMAT = 1  # increase it when the drawing changes, so that folders written before are recognized as different
_MAX_STAMP_BYTES = 1 << 16
_SUPERSAMPLING = 4  # outlines are drawn this much larger, then averaged: smooth edges, boxes to a quarter pixel


@dataclass(frozen=True)
class ShapesConfig:
    """Content of the data set; equal values give equal files."""

    train_images: int = 640
    val_images: int = 100
    height: tuple[int, int] = (160, 160)
    """Range of image heights, pixels, both ends included."""
    width: tuple[int, int] = (160, 160)
    seed: int = 0
    max_objects: int = 5
    """Largest number of objects per image."""
    overlap: float = 0.2
    """Largest share (0–0.6) of an object that later objects may hide."""
    min_side: float = 16.0
    """Smallest longer side of an object, pixels."""
    max_side: float = 0.5
    """Largest longer side of an object, as a share (0–1) of the image's shorter side."""
    empty_share: float = 0.04
    """Share of images without any object."""
    gray_share: float = 0.08
    """Share of images without colour."""


def write_shapes(folder: str | Path, config: ShapesConfig | None = None) -> bool:
    """Write the data set into `folder`; return False and change nothing if it already holds this data set.

    The folder appears only when it is complete: it is written under a temporary name beside it and then renamed.

    Raises:
        ValueError: an argument is out of its range, or `folder` exists and holds something else.
    """
    config = config or ShapesConfig()
    _check(config)
    folder = Path(folder).absolute()
    stamp = json.dumps({"format": _FORMAT, **dataclasses.asdict(config)}, indent=1)
    if _stamped_config(folder) == config:
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
        os.replace(temporary, folder)  # the target does not exist or is an empty folder
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def _stamped_config(folder: Path) -> ShapesConfig | None:
    """Return the arguments of a generated folder, with defaults for missing ones; None for any other folder."""
    try:
        stamp = parse_json((folder / STAMP).read_bytes(), _MAX_STAMP_BYTES)
        if stamp.pop("format") != _FORMAT:
            return None
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stamp.items()
        }
        return ShapesConfig(**values)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def draw_image(config: ShapesConfig, split: int, number: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray, float]]]:
    """Return an image [h, w, 3] uint8 RGB and its objects: (label, box xyxy in pixels, area in pixels)."""
    rng = np.random.default_rng([config.seed, split, number])
    height = int(rng.integers(config.height[0], config.height[1] + 1))
    width = int(rng.integers(config.width[0], config.width[1] + 1))
    gray = rng.random() < config.gray_share
    canvas = _background(rng, height, width)
    if gray:
        canvas[:] = _luma(canvas)[..., None]
    num_objects = 0 if rng.random() < config.empty_share else int(rng.integers(1, config.max_objects + 1))
    objects: list[tuple[int, np.ndarray, float]] = []
    visible: list[np.ndarray] = []  # per object [h, w]: the share of each pixel that no later object covers
    for _ in range(num_objects):
        drawn = _draw_object(rng, visible, [area for _, _, area in objects], height, width, config)
        if drawn is None:
            continue  # no free position was found: fewer objects rather than hidden ones
        label, coverage, box = drawn
        visible = [share * (1 - coverage) for share in visible] + [coverage]
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
    if not 0 < config.max_side <= 1:
        raise ValueError(f"max_side must lie above 0 and at most at 1, not {config.max_side}")
    for name in ("height", "width"):
        low, high = getattr(config, name)
        if not 2 * config.min_side <= config.max_side * low <= config.max_side * high:
            raise ValueError(
                f"{name} must be a range (low, high) of at least {2 / config.max_side:g} times min_side, "
                f"not ({low}, {high})"
            )
    if not 0 <= config.overlap <= 0.6:
        raise ValueError(f"overlap must lie in 0–0.6, not {config.overlap}: a hidden object cannot be recognized")


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


def _draw_object(
    rng: np.random.Generator,
    visible: list[np.ndarray],
    areas: list[float],
    height: int,
    width: int,
    config: ShapesConfig,
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Return (label, coverage [h, w] 0–1, box xyxy) of a new object that leaves all others visible enough, or None."""
    label = int(rng.integers(len(CLASSES)))
    side = math.exp(rng.uniform(math.log(config.min_side), math.log(min(height, width) * config.max_side)))
    for _ in range(20):
        outline = _outline(rng, CLASSES[label])
        extent = outline.max(axis=0) - outline.min(axis=0)
        outline = (outline - outline.min(axis=0) - extent / 2) * (side / extent.max())
        # At each side at most a fifth of the extent may be outside the image: a corner alone does not show the class.
        margin = 0.3 * side * extent / extent.max()
        centre = rng.uniform(margin, np.array([width, height]) - margin)
        coverage, box = _rasterize(outline + centre, height, width)
        if all(
            (share * (1 - coverage)).sum() >= (1 - config.overlap) * area
            for share, area in zip(visible, areas, strict=True)
        ):
            return label, coverage, box
    return None


def _outline(rng: np.random.Generator, name: str) -> np.ndarray:
    """Return a randomly rotated outline of the class, [points, 2] (x, y), of any size."""
    if name == "disc":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angles), rng.uniform(0.65, 1) * np.sin(angles)], axis=1)
    elif name == "box":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, rng.uniform(0.5, 1)]
    elif name == "triangle":
        angles = np.deg2rad([90, 210, 330]) + rng.uniform(-0.22, 0.22, 3)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:  # a star with five points
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.38, 0.48))
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    angle = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _rasterize(outline: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coverage [h, w] float32 0–1 of an outline (pixels) and the box xyxy of its part inside the image."""
    factor = _SUPERSAMPLING
    fine = np.zeros((height * factor, width * factor), np.uint8)
    points = np.round((outline * factor - 0.5) * 16).astype(np.int32)  # pixel centres have coordinates of .5
    cv2.fillPoly(fine, [points], 255, lineType=cv2.LINE_8, shift=4)
    coverage = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    rows, columns = np.flatnonzero(fine.any(axis=1)), np.flatnonzero(fine.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64) / factor
    return coverage, box


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a background [h, w, 3] float32 0–255 with low contrast: gradient, smooth noise, blurred discs, lines."""
    base = _color(rng, saturation=(0.0, 0.45), value=(0.25, 0.85))
    canvas: np.ndarray = np.broadcast_to(base, (height, width, 3)).astype(np.float32).copy()
    canvas += _lighting(rng, height, width)[..., None] * 60 - 60
    for cells, strength in ((3, 22), (9, 12), (40, 7)):
        canvas += rng.uniform(0.3, 1) * strength * _cloud(rng, height, width, cells, channels=3)
    clutter = canvas.copy()
    for _ in range(rng.integers(0, 6)):  # discs, blurred so much that they have no outline
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
    """Return a texture [h, w, 3] float32 around `color`: plain, gradient, stripes, checks or grain."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
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


def _contrasting(rng: np.random.Generator, background: np.ndarray, gray: bool) -> np.ndarray:
    """Return a colour that differs clearly from `background` (both RGB 0–255), in brightness if the image is grey."""
    best, best_distance = background, -1.0
    for _ in range(8):
        color = _color(rng, saturation=(0.25, 1.0), value=(0.2, 1.0))
        brightness = abs(float(_luma(color) - _luma(background)))
        distance = 2 * brightness if gray else max(brightness, 0.6 * float(np.linalg.norm(color - background)))
        if distance > 75:
            return color
        if distance > best_distance:
            best, best_distance = color, distance
    return best


def _color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """Return a random colour, RGB 0–255 float32 [3]."""
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> np.ndarray:
    """Return smooth noise [h, w, channels] of about -1…1 with `cells` maxima and minima across."""
    grid = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def _lighting(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a brightness [h, w] float32 of 0.7–1.3 that decreases in one direction."""
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    return 1 + strength * (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32)


def _luma(color: np.ndarray) -> np.ndarray:
    return color @ np.array([0.299, 0.587, 0.114], np.float32)


def main(argv: list[str] | None = None) -> None:
    description = "Generate a small detection set of textured shapes (COCO format)."
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    default = ShapesConfig()
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=default.train_images, help="training images")
    parser.add_argument("--val", type=int, default=default.val_images, help="validation images")
    parser.add_argument("--size", type=int, nargs="+", default=[160], help="side, or smallest and largest side, pixels")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--max-objects", type=int, default=default.max_objects, help="largest number of objects per image"
    )
    parser.add_argument("--overlap", type=float, default=default.overlap, help="largest hidden share of an object")
    parser.add_argument("--min-side", type=float, default=default.min_side, help="longer side of the smallest, pixels")
    parser.add_argument(
        "--max-side", type=float, default=default.max_side, help="longer side of the largest, share of the image's side"
    )
    if message := repeated_option(sys.argv[1:] if argv is None else argv):
        parser.error(message)
    args = parser.parse_args(argv)
    sides = (min(args.size), max(args.size))
    config = ShapesConfig(
        args.train,
        args.val,
        sides,
        sides,
        args.seed,
        args.max_objects,
        args.overlap,
        args.min_side,
        args.max_side,
    )
    try:
        is_new = write_shapes(args.out, config)
    except ValueError as error:
        parser.error(str(error))
    total = config.train_images + config.val_images
    print(f"{args.out}: {total} images written" if is_new else f"{args.out}: already there, nothing to do")


if __name__ == "__main__":
    main()
