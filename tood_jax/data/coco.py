"""Reader of COCO directories: a folder of images and an instances JSON.

Boxes come out as xyxy in pixels of the upright image, clipped to it; labels are positions in `classes`, which are
sorted by category id, so that ids may have gaps. Crowd boxes take no part in training; `ground_truth` keeps them.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tood_jax.config import SplitConfig
from tood_jax.data.decode import image_size
from tood_jax.data.errors import DataError
from tood_jax.data.paths import ImagePath, as_path, is_file, is_folder, read_bytes

_SHOWN = 3  # examples named in a report


class ClassInfo(NamedTuple):
    """One category."""

    id: int
    name: str


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects."""

    id: Any  # as in the file
    path: ImagePath
    width: int  # pixels, as the file says
    height: int
    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels
    labels: np.ndarray  # [n] int32


@dataclass
class LoadReport:
    """What was found, and what was mended or dropped."""

    images: int = 0
    objects: int = 0
    counts: Counter = field(default_factory=Counter)  # what happened → how often
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, example: str) -> None:
        """Count one case of `what`; the first few are named."""
        self.counts[what] += 1
        named = self.examples.setdefault(what, [])
        if len(named) < _SHOWN:
            named.append(example)

    def summary(self) -> str:
        """One line of sizes, and one of what was dropped or mended, with examples."""
        lines = [f"{self.images} images, {self.objects} objects"]
        if not self.objects:
            lines.append("no box is left, so nothing can be learnt or evaluated here")
        for what, count in self.counts.items():
            named = self.examples[what]
            more = ", …" if count > len(named) else ""
            lines.append(f"{count} {what} ({', '.join(named)}{more})")
        return "; ".join(lines) + "."


@dataclass(frozen=True)
class CocoSet:
    """One split, read and checked."""

    classes: tuple[ClassInfo, ...]
    images: tuple[ImageRecord, ...]  # in the order of the file
    report: LoadReport
    annotations: tuple[dict[str, Any], ...]  # COCO's own form, complete: area and iscrowd filled in

    def ground_truth(self) -> dict[str, Any]:
        """The split as a complete COCO dictionary for its evaluation; ids are those of the file."""
        return {
            "images": [
                {"id": one.id, "file_name": one.path.name, "width": one.width, "height": one.height}
                for one in self.images
            ],
            "annotations": [dict(one) for one in self.annotations],
            "categories": [{"id": one.id, "name": one.name} for one in self.classes],
        }


def load_coco(split: SplitConfig) -> CocoSet:
    """Read a split that is a folder of images and an instances JSON; both may lie in an object store.

    Raises:
        DataError: in one sentence, for whatever can't be mended. What can is mended, counted and said in `report`.
    """
    file, folder = as_path(split.annotations), as_path(split.images)
    if not is_file(file):
        raise DataError(
            f"There is no annotation file {split.annotations or '(empty name)'}: set data.*.annotations to a COCO "
            "instances JSON."
        )
    if not is_folder(folder):
        raise DataError(f"There is no image folder {folder}: set data.*.images to the folder of the images of {file}.")

    def path_of(position: int, name: str) -> ImagePath:
        path = folder / name
        if position == 0 and not is_file(path):
            raise DataError(
                f"{path}, the first image of {file}, does not exist: set data.*.images to the folder that 'file_name' "
                "starts from."
            )
        return path

    return parse_coco(read_coco_json(read_bytes(file), file), file, path_of)


def parse_coco(raw: Mapping[str, Any], file: object, path_of: Callable[[int, str], ImagePath]) -> CocoSet:
    """Check and mend an instances tree.

    Args:
        raw: as `read_coco_json` returns it.
        file: what errors call it.
        path_of: where the image of a position in `images` and a 'file_name' lies.

    Raises DataError as `load_coco`.
    """
    report = LoadReport()
    classes = _classes(raw, file)
    label_of = {one.id: label for label, one in enumerate(classes)}
    images = _images(raw, file, path_of, report)
    kept = _annotations(raw, file, images, label_of, report)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for one in kept:
        if not one["iscrowd"]:
            by_image.setdefault(one["image_id"], []).append(one)
    records = []
    for id_, (path, width, height) in images.items():
        own = by_image.get(id_, [])
        xywh = np.asarray([one["bbox"] for one in own], np.float32).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        labels = np.asarray([label_of[one["category_id"]] for one in own], np.int32)
        if not own:
            report.note("images without objects", path.name)
        records.append(ImageRecord(id_, path, width, height, boxes, labels))
    report.images, report.objects = len(records), sum(len(one.labels) for one in records)
    present = {label for one in records for label in one.labels.tolist()}
    for label, (_, name) in enumerate(classes):
        if label not in present:
            report.note("classes without objects", name)
    return CocoSet(classes, tuple(records), report, tuple(kept))


def read_coco_json(data: bytes, file: object) -> dict[str, Any]:
    """The tree of an instances JSON, its lists being there. Raises DataError, naming `file`."""
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}): give a COCO instances JSON.") from None
    if not isinstance(raw, dict):
        raise DataError(
            f"{file} holds a JSON {type(raw).__name__}, not COCO's object with images, annotations, categories."
        )
    for name in ("images", "annotations", "categories"):
        if not isinstance(raw.get(name), list):
            raise DataError(
                f"{file} has no list {name!r}: it must be a COCO instances file (images, annotations, categories)."
            )
    for name in ("images", "categories"):
        if not raw[name]:
            raise DataError(f"{file}: the list {name!r} is empty, so there is nothing to learn or to evaluate.")
    return raw


def _classes(raw: Mapping[str, Any], file: object) -> tuple[ClassInfo, ...]:
    found: dict[int, str] = {}
    for one in raw["categories"]:
        id_ = one.get("id") if isinstance(one, dict) else None
        if not isinstance(id_, int) or isinstance(id_, bool):
            raise DataError(f"{file}: categories: {one!r} has no integer 'id'.")
        if id_ in found:
            raise DataError(
                f"{file}: categories: id {id_} is there twice ({found[id_]!r} and {one.get('name')!r}); "
                "ids must differ."
            )
        found[id_] = str(one.get("name", id_))
    return tuple(ClassInfo(id_, found[id_]) for id_ in sorted(found))


def _images(
    raw: Mapping[str, Any], file: object, path_of: Callable[[int, str], ImagePath], report: LoadReport
) -> dict[Any, tuple[ImagePath, int, int]]:
    images: dict[Any, tuple[ImagePath, int, int]] = {}
    for one in raw["images"]:
        id_, name = (one.get("id"), one.get("file_name")) if isinstance(one, dict) else (None, None)
        if id_ is None or isinstance(id_, (list, dict, float)) or not isinstance(name, str) or not name:
            raise DataError(f"{file}: images: {str(one)[:120]} needs an 'id' (number or text) and a 'file_name'.")
        if id_ in images:
            raise DataError(
                f"{file}: images: id {id_!r} is there twice ({images[id_][0].name} and {name}); ids must differ."
            )
        if images and isinstance(id_, str) != isinstance(first := next(iter(images)), str):
            raise DataError(
                f"{file}: images: ids are numbers and texts ({first!r}, {id_!r}), which can't be put in order; "
                "use one kind."
            )
        path = path_of(len(images), name)
        width, height = one.get("width"), one.get("height")
        if not _is_length(width) or not _is_length(height):
            height, width = image_size(path)
            report.note("image sizes read from the files", name)
        images[id_] = (path, int(width), int(height))
    return images


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 1


def _annotations(
    raw: Mapping[str, Any],
    file: object,
    images: Mapping[Any, tuple[ImagePath, int, int]],
    label_of: Mapping[int, int],
    report: LoadReport,
) -> list[dict[str, Any]]:
    """Annotations that can be used, clipped to their images and complete."""
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for position, one in enumerate(raw["annotations"]):
        if not isinstance(one, dict) or "bbox" not in one:
            raise DataError(
                f"{file}: annotations: entry {position} has no 'bbox'; this must be an instances file, not captions."
            )
        image = images.get(one.get("image_id")) if not isinstance(one.get("image_id"), (list, dict)) else None
        name = f"annotation {one.get('id', position)}"
        if image is None:
            report.note("annotations of unknown images dropped", f"{name}, image_id {one.get('image_id')!r}")
            continue
        category = one.get("category_id")
        if isinstance(category, (list, dict)) or category not in label_of:
            raise DataError(
                f"{file}: {name} has category_id {category!r}, which 'categories' doesn't list; add it there."
            )
        box = _numbers(one["bbox"])
        if box is None:
            raise DataError(
                f"{file}: {name}: 'bbox' must be four finite numbers [x, y, width, height], "
                f"not {str(one['bbox'])[:80]}."
            )
        clipped = _clip(box, image[1], image[2])
        if clipped is None:
            report.note("boxes without area or outside the image dropped", f"{name} in {image[0].name}")
            continue
        if clipped != box:
            report.note("boxes clipped to the image", f"{name} in {image[0].name}")
        crowd = one.get("iscrowd")
        if crowd is None:
            report.note("missing 'iscrowd' taken as 0", name)
        elif crowd:
            report.note("crowd boxes left out of training", f"{name} in {image[0].name}")
        area = one.get("area")
        if isinstance(area, bool) or not isinstance(area, (int, float)) or not (math.isfinite(area) and area > 0):
            report.note("missing 'area' taken from the box", name)
            area = clipped[2] * clipped[3]
        if one.get("id") is not None:
            own_id = str(one["id"])
            if own_id in seen:
                report.note("duplicate annotation ids numbered anew", name)
            seen.add(own_id)
        kept.append(
            {
                "id": len(kept) + 1,  # COCO's evaluation needs them unique and takes 0 for "not matched"
                "image_id": one["image_id"],
                "category_id": one["category_id"],
                "bbox": clipped,
                "area": area,
                "iscrowd": int(bool(crowd)),
            }
        )
    return kept


def _numbers(box: Any) -> list[float] | None:
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in box):
        return None
    return [float(x) for x in box]


def _clip(box: list[float], width: int, height: int) -> list[float] | None:
    """xywh inside the image, or None if nothing of it is."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))
    if box[2] <= 0 or box[3] <= 0 or x1 <= x0 or y1 <= y0:
        return None
    if (x0, y0) == (box[0], box[1]) and x1 == box[0] + box[2] and y1 == box[1] + box[3]:
        return box
    return [x0, y0, x1 - x0, y1 - y0]
