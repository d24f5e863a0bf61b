"""A detection data set after loading: what each file format in `formats/` returns and everything else uses.

Boxes are xyxy in pixels of the upright image, clipped to it. Labels are positions in `classes`, which are sorted by
category id, so that ids may have gaps.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tood_jax.data.load_report import LoadReport
from tood_jax.data.paths import ImagePath

Id = int | float | str  # of an image, as in its file


class ClassInfo(NamedTuple):
    """One category."""

    id: int
    name: str


def class_names(classes: Iterable[ClassInfo]) -> tuple[str, ...]:
    """Return the names of classes, in their order."""
    return tuple(category.name for category in classes)


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and the objects that training learns from."""

    id: Id
    path: ImagePath
    width: int  # pixels, according to the annotation file
    height: int
    boxes: np.ndarray  # [n, 4] float32 xyxy, pixels
    labels: np.ndarray  # [n] int32
    is_tiny: np.ndarray | None = None  # [n] bool: a side below 1 pixel or an area ≤ 0 in the file; None: no box
    is_annotated: bool = True  # the file has at least one annotation of it, also a crowd


@dataclass(frozen=True)
class Dataset:
    """One split, read and checked."""

    classes: tuple[ClassInfo, ...]
    images: tuple[AnnotatedImage, ...]  # in the order of the file
    report: LoadReport
    annotations: tuple[dict[str, Any], ...] | None  # COCO's form, values of the file, complete; None: not kept
    has_annotations: bool = True  # False if the file has no list `annotations`, as the file of a test set

    def ground_truth(self) -> dict[str, Any]:
        """Return the split as a complete COCO dictionary for its evaluation; ids and boxes are those of the file.

        Raises:
            ValueError: the split was not loaded for evaluation.
        """
        if self.annotations is None:
            raise ValueError("This split was loaded with for_evaluation=False, so its annotations were not kept.")
        return {
            "images": [
                {"id": image.id, "file_name": image.path.name, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "annotations": [dict(annotation) for annotation in self.annotations],
            "categories": [info._asdict() for info in self.classes],
        }

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Counts of images and objects, and hashes of the ids, sizes, boxes and labels in their order.

        Paths do not count: the same data may move or change its format.
        """
        return {
            "images": len(self.images),
            "objects": sum(len(image.labels) for image in self.images),
            "ids": _hash(json.dumps(image.id).encode() + b"\n" for image in self.images),
            "sizes": _hash([np.asarray([(image.height, image.width) for image in self.images], np.int64).tobytes()]),
            "boxes": _hash(_rows(image.boxes, np.float32) for image in self.images),
            "labels": _hash(_rows(image.labels, np.int64) for image in self.images),
        }


def _rows(array: np.ndarray, dtype: Any) -> bytes:
    """Return the number of rows and their values; the number keeps rows of two images apart."""
    return len(array).to_bytes(8, "little") + np.ascontiguousarray(array, dtype).tobytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
