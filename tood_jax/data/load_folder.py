"""Load a split of a folder whose layout is recognized: COCO, YOLO, Pascal VOC, records or TensorFlow Datasets.

To add a layout, write `formats/NAME.py` with a function `find_splits(folder)` (formats/folder_splits.py says what it
returns) and add one entry to `LAYOUTS`.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tood_jax.data.dataset import AnnotatedImage, Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats import coco_folder, prepared_folders, voc, yolo
from tood_jax.data.formats.folder_splits import SPLITS, Splits, listed, subfolders
from tood_jax.data.paths import as_path, is_remote
from tood_jax.untrusted.printable import printable

LAYOUTS: dict[str, Callable[[Path], Splits]] = {  # by the name in messages
    "records": prepared_folders.find_record_splits,
    "TensorFlow Datasets": prepared_folders.find_tfds_splits,
    "YOLO": yolo.find_splits,
    "COCO": coco_folder.find_splits,
    "Pascal VOC": voc.find_splits,
}
_VAL_SHARE = 5  # one image in this many is val if a folder has no val
_MAX_DEPTH = 3  # folders that contain nothing but one folder, as archives unpack to


class Layout(NamedTuple):
    """How a folder is read."""

    name: str  # of LAYOUTS
    splits: Splits


def find_layout(folder: str) -> Layout:
    """Return the layout of a folder and its splits.

    Raises:
        DataError: no such folder, no layout or several layouts fit; what was found is listed.
    """
    root = as_path(folder)
    if is_remote(root):
        raise DataError(f"{folder} must be a folder of this machine: set data.*.images and data.*.annotations instead.")
    for _ in range(_MAX_DEPTH):
        found = {name: splits for name, find in LAYOUTS.items() if (splits := find(root))}
        if len(found) > 1:
            layouts = "; ".join(
                f"{name} ({listed(split.source for split in splits.values())})" for name, splits in found.items()
            )
            raise DataError(
                f"{printable(folder)} has annotations in several layouts: {layouts}. Move all but one of them out of "
                "the folder, or name the files in data.*.images and data.*.annotations."
            )
        if found:
            return Layout(*found.popitem())
        inner = subfolders(root)
        if len(inner) != 1:
            break
        root = inner[0]
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    raise DataError(
        f"{printable(root)} has no layout that is recognized ({', '.join(LAYOUTS)}); it holds "
        f"{listed(names) or 'nothing'}. docs/data.md shows the layouts."
    )


def load_folder(
    folder: str, split: str, seed: int, broken_images: Literal["fail", "skip"] = "fail", for_evaluation: bool = True
) -> Dataset:
    """Load a split of a folder.

    Args:
        folder: a local folder.
        split: train, val or test. If the folder has no val, a fifth of its training images is val.
        seed: chooses these images.
        broken_images: data.broken_images: whether missing images are an error or only reported.
        for_evaluation: keep the annotations as in the file; training needs only the boxes that it learns from.

    Raises:
        DataError: the layout is not recognized, or the split does not exist or cannot be used.
    """
    if split not in SPLITS:
        raise DataError(f"data.*.folder_split={printable(split) or '(empty)'} must be one of {', '.join(SPLITS)}.")
    layout = find_layout(folder)
    splits = layout.splits
    if split == "train" and "val" in splits and "train" in splits:
        source, part = splits["train"], ""
    elif split in splits and split != "train":
        source, part = splits[split], ""
    elif split != "test" and "val" not in splits and ("train" in splits or "" in splits):
        source, part = splits.get("train") or splits[""], split
    else:
        known = ", ".join(name or "one without a name" for name in splits)
        raise DataError(f"{printable(folder)} ({layout.name}) has no split {split}; its splits: {known}.")
    dataset = source.load(broken_images, for_evaluation)
    dataset = _take_part(dataset, part, seed, folder) if part else dataset
    report = copy.deepcopy(dataset.report)
    report.origin = f"{layout.name}, {printable(source.source)}"
    return replace(dataset, report=report)


def _take_part(dataset: Dataset, part: str, seed: int, folder: str) -> Dataset:
    """Return the images of train or of val: val has those of the lowest hashes, so it does not depend on the order."""
    order = sorted(range(len(dataset.images)), key=lambda position: _hash(dataset.images[position], seed))
    if len(order) < 2:
        raise DataError(f"{printable(folder)} has {len(order)} image, but training and validation need one each.")
    in_val = set(order[: max(1, len(order) // _VAL_SHARE)])
    images = tuple(image for i, image in enumerate(dataset.images) if (i in in_val) == (part == "val"))
    ids = {image.id for image in images}
    annotations = dataset.annotations
    if annotations is not None:
        annotations = tuple(one for one in annotations if one["image_id"] in ids)
    report = copy.deepcopy(dataset.report)
    report.images, report.objects = len(images), sum(len(image.labels) for image in images)
    note = (
        f"There is no val, so {len(in_val)} of all {len(order)} images are val, chosen by folder_seed={seed}; the "
        "counts of repairs are those of all."
    )
    report.hint = f"{report.hint} {note}".strip()
    return replace(dataset, images=images, annotations=annotations, report=report)


def _hash(image: AnnotatedImage, seed: int) -> bytes:
    """Return the rank of an image: it depends on its name alone, so that an image which is added moves few others."""
    return hashlib.blake2b(f"{seed} {image.path.name}".encode(errors="surrogatepass")).digest()
