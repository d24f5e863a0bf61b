"""The list `annotations` of an instances JSON: unchanged for evaluation, clipped and filtered for training."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tood_jax.data.dataset import Id
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco_values import (
    Box,
    IdTable,
    as_box,
    as_flag,
    describe_invalid_box,
    segmentation_box,
    short_repr,
)
from tood_jax.data.load_report import LoadReport
from tood_jax.untrusted.bounded_json import MAX_NUMBER, as_number
from tood_jax.untrusted.printable import printable

_MANY = 1 / 3  # share of bad boxes above which their likely cause is reported
_MOST = 0.95  # share of boxes that must fit another format for it to be reported as the cause
_ROUNDING = 1e-3  # pixels by which a box may exceed its image without counting as bad


class ImageSize(NamedTuple):
    """What the parser needs to know about an image."""

    name: str  # for the report
    width: int  # pixels
    height: int


class Annotation(NamedTuple):
    """One object."""

    ground_truth: dict[str, Any]  # in COCO's format, complete, with the box of the file
    label: int
    training_box: Box | None  # clipped to the image; None if training leaves the object out
    is_tiny: bool  # a side of the file's box is below 1 pixel, or the area 0 or less


class AnnotationParser:
    """Parse annotations one by one.

    Args:
        file: its name in errors.
        images: by id.
        labels: by category id.
        report: counts repairs and omissions.
    """

    def __init__(self, file: object, images: Mapping[Id, ImageSize], labels: Mapping[int, int], report: LoadReport):
        self._file, self._images, self._labels, self._report = file, images, labels, report
        self._image_ids, self._category_ids = IdTable(images), IdTable(labels)
        self._seen: set[Id] = set()
        self._formats = _BoxFormats()

    def parse(self, entries: Iterable[Any]) -> Iterator[Annotation]:
        """Yield the annotations of known images. Raises DataError for an annotation that cannot be used."""
        number = 0
        for position, entry in enumerate(entries):
            self._report.listed += 1
            name = _EntryName(position, entry)
            box = self._box(entry, name)
            image_id = self._reference(entry, "image_id", self._image_ids, name)
            if image_id is None:
                self._report.note(
                    "annotations of unknown images dropped", f"{name}, image_id {short_repr(entry.get('image_id'))}"
                )
                continue
            number += 1
            yield self._annotation(entry, name, box, image_id, number)
        self._report.hint = self._formats.hint()

    def _annotation(self, entry: dict[str, Any], name: "_EntryName", box: Box, image_id: Id, number: int) -> Annotation:
        category = self._reference(entry, "category_id", self._category_ids, name)
        if not isinstance(category, int):
            raise DataError(
                f"{self._file}: {name} has category_id {short_repr(entry.get('category_id'))}, which 'categories' "
                "doesn't list; add it there."
            )
        image = self._images[image_id]
        clipped = _clip(box, image.width, image.height)
        self._formats.add(box, clipped, image)
        is_crowd = self._is_crowd(entry, name)
        is_ignored = self._is_ignored(entry, name)
        self._report_flags(name, image, is_crowd, is_ignored)
        training_box = None if is_crowd or is_ignored else self._training_box(box, clipped, name, image)
        self._report_id(entry, name)
        area = self._area(entry, box, name)
        ground_truth = {
            "id": number,  # COCO's evaluation needs them unique and takes 0 for "not matched"
            "image_id": image_id,
            "category_id": category,
            "bbox": list(box),
            "area": area,
            "iscrowd": int(is_crowd),
            **({"ignore": 1} if is_ignored else {}),  # for conversions; COCO's evaluation does not use it
        }
        is_tiny = min(box[2], box[3]) < 1 or area <= 0
        return Annotation(ground_truth, self._labels[category], training_box, is_tiny)

    def _box(self, entry: Any, name: "_EntryName") -> Box:
        if not isinstance(entry, dict) or ("bbox" not in entry and entry.get("segmentation") is None):
            raise DataError(
                f"{self._file}: annotations: entry {name.position} has no 'bbox'"
                + ("" if isinstance(entry, dict) else f" but is {short_repr(entry)}")
                + "; this must be an instances file, not captions."
            )
        if entry.get("bbox") is None and entry.get("segmentation") is not None:
            return self._box_of_segmentation(entry["segmentation"], name)
        box = as_box(entry["bbox"])
        if box is None:
            raise DataError(
                f"{self._file}: {name}: 'bbox' must be four finite numbers [x, y, width, height], "
                f"{describe_invalid_box(entry['bbox'])}."
            )
        return box

    def _box_of_segmentation(self, segmentation: Any, name: "_EntryName") -> Box:
        box = segmentation_box(segmentation)
        if box is None:
            raise DataError(
                f"{self._file}: {name} has no 'bbox', and its 'segmentation' is neither polygons [[x0, y0, x1, y1, "
                f"x2, y2, …], …] nor COCO's run-length encoding: {short_repr(segmentation)}."
            )
        self._report.note("missing 'bbox' taken from 'segmentation'", name)
        return box

    def _reference(self, entry: dict[str, Any], field: str, table: IdTable, name: "_EntryName") -> Id | None:
        value = entry.get(field)
        found = table.find(value)
        if found is not None and type(found) is not type(value):
            self._report.note(f"values of {field!r} of another type than the 'id' they mean", f"{name}, {value!r}")
        return found

    def _is_crowd(self, entry: dict[str, Any], name: "_EntryName") -> bool:
        is_crowd = self._flag(entry, "iscrowd", name)
        if is_crowd is None:
            self._report.note("missing 'iscrowd' taken as 0", name)
        return bool(is_crowd)

    def _is_ignored(self, entry: dict[str, Any], name: "_EntryName") -> bool:
        flags = [self._flag(entry, field, name) for field in ("ignore", "difficult") if field in entry]  # all checked
        return any(flags)

    def _report_flags(self, name: "_EntryName", image: ImageSize, is_crowd: bool, is_ignored: bool) -> None:
        """Report an object that training leaves out because of a flag."""
        if is_crowd:
            self._report.note("crowd boxes left out of training", name, image.name)
        elif is_ignored:
            self._report.note("boxes marked 'ignore' or 'difficult' left out of training", name, image.name)

    def _training_box(self, box: Box, clipped: Box | None, name: "_EntryName", image: ImageSize) -> Box | None:
        if clipped is None:
            self._report.note("boxes without area or outside the image left out of training", name, image.name)
        elif clipped != box:
            self._report.note("boxes clipped to the image for training", name, image.name)
        return clipped

    def _flag(self, entry: dict[str, Any], field: str, name: "_EntryName") -> bool | None:
        """Return a flag, or None where it is missing."""
        value = entry.get(field)
        flag = as_flag(value)
        if flag is None and value is not None:
            raise DataError(f"{self._file}: {name}: {field!r} must be 0, 1, false or true, not {short_repr(value)}.")
        return flag

    def _area(self, entry: dict[str, Any], box: Box, name: "_EntryName") -> float:
        """Return the area of the file, also if it is 0 or less; evaluation sorts objects into sizes by it."""
        value = entry.get("area")
        area = as_number(value)
        if area is not None:
            if area <= 0:
                self._report.note("objects of 'area' 0 or less, evaluated as such", name)
            return area
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise DataError(f"{self._file}: {name}: 'area' must be within ±{MAX_NUMBER:g}, not {short_repr(value)}.")
        self._report.note("missing 'area' taken from the box", name)
        return box[2] * box[3]

    def _report_id(self, entry: dict[str, Any], name: "_EntryName") -> None:
        """Report ids that pycocotools handles wrongly: it never matches an object 0, nor both objects of one id."""
        id_ = entry.get("id")
        if not isinstance(id_, (int, float, str)):
            return
        if id_ in self._seen:
            self._report.note("duplicate annotation ids renumbered", name)
        elif id_ == 0:
            self._report.note("annotation ids 0 renumbered, because pycocotools never matches them", name)
        self._seen.add(id_)


@dataclass(frozen=True, slots=True)
class _EntryName:
    """The name of an annotation in messages; converted to text only when it is needed."""

    position: int
    entry: Any

    def __str__(self) -> str:
        id_ = self.entry.get("id") if isinstance(self.entry, dict) else None
        if id_ is None:
            return f"annotation {self.position}"
        return f"annotation {printable(id_, 60) if isinstance(id_, (int, str)) else short_repr(id_)}"


@dataclass
class _BoxFormats:
    """Counts of boxes by the formats that they may have."""

    boxes: int = 0
    bad: int = 0  # clipped, outside or below one pixel
    corners: int = 0  # inside the image if read as corners
    relative: int = 0  # all four numbers within 0 … 1

    def add(self, box: Box, clipped: Box | None, image: ImageSize) -> None:
        """Count a box and its part inside the image."""
        x, y, width, height = box
        self.boxes += 1
        if clipped is None or min(width, height) < 1 or (clipped is not box and _differ(box, clipped)):
            self.bad += 1
        self.corners += 0 <= x < width <= image.width + 1 and 0 <= y < height <= image.height + 1
        self.relative += 0 <= x <= 1 and 0 <= y <= 1 and width <= 1 and height <= 1

    def hint(self) -> str:
        """Return a sentence about the likely cause if many boxes are bad, otherwise ""."""
        if self.bad <= _MANY * self.boxes:
            return ""
        if self.relative >= _MOST * self.boxes:
            cause = "they look like shares of the image (0–1), and 'bbox' must be in pixels"
        elif self.corners >= _MOST * self.boxes:
            cause = "they look like corners [x0, y0, x1, y1], and 'bbox' must be [x, y, width, height]"
        else:
            cause = (
                "'bbox' must be [x, y, width, height] in pixels, and 'width' and 'height' those of the image that was "
                "annotated"
            )
        return f"{self.bad} of {self.boxes} boxes are clipped, outside or below one pixel: {cause}."


def _differ(box: Box, clipped: Box) -> bool:
    return any(abs(side - clipped_side) > _ROUNDING for side, clipped_side in zip(box, clipped, strict=True))


def _clip(box: Box, width: int, height: int) -> Box | None:
    """Return the part of a box inside its image, or None if there is none."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(width)), min(box[1] + box[3], float(height))
    if box[2] <= 0 or box[3] <= 0 or x1 <= x0 or y1 <= y0:
        return None
    if (x0, y0) == (box[0], box[1]) and x1 == box[0] + box[2] and y1 == box[1] + box[3]:
        return box
    return x0, y0, x1 - x0, y1 - y0
