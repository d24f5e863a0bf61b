"""Load a split of a data set in any of the supported formats.

To add a format, write `formats/NAME.py` with a function that returns a `Dataset` (most formats convert their
annotations to COCO's and call `parse_coco`), and add one entry to `FORMATS`. Its `location` recognizes a split of the
format by the fields of SplitConfig, for example `split.annotations if split.annotations.endswith(".yaml") else ""`.
Only a format that cannot use `images` and `annotations` needs a field of its own there (config/schema.py).
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from tood_jax.config import DataConfig, SplitConfig
from tood_jax.data.dataset import AnnotatedImage, Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import load_array_record
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.formats.tfds import load_tfds
from tood_jax.data.load_folder import load_folder
from tood_jax.data.load_report import LoadReport

BrokenImages = Literal["fail", "skip"]


class DataFormat(NamedTuple):
    """How a split of one format is recognized and loaded."""

    location: Callable[[SplitConfig], str]  # where the split lies; "" if it has another format
    load: Callable[[SplitConfig, BrokenImages, bool], Dataset]  # (split, broken_images, for_evaluation)


FORMATS = {  # by the name in messages; a split of none of these is a COCO directory
    "records": DataFormat(
        location=lambda split: split.records,
        load=lambda split, broken_images, for_evaluation: load_array_record(split.records, for_evaluation),
    ),
    "tfds": DataFormat(
        location=lambda split: split.tfds,
        load=lambda split, broken_images, for_evaluation: load_tfds(split.tfds, split.tfds_split, for_evaluation),
    ),
    "folder": DataFormat(
        location=lambda split: split.folder,
        load=lambda split, broken_images, for_evaluation: load_folder(
            split.folder, split.folder_split, split.folder_seed, broken_images, for_evaluation
        ),
    ),
}


def load_dataset(split: SplitConfig, broken_images: BrokenImages = "fail", for_evaluation: bool = True) -> Dataset:
    """Load a split; a format of `FORMATS` takes precedence over images and annotations, which may be named as well.

    Args:
        split: where it is.
        broken_images: data.broken_images: whether missing images are an error or only reported.
        for_evaluation: keep the annotations as in the file; training needs only the boxes that it learns from.

    Raises:
        DataError: the split cannot be used, or names more than one format.
    """
    named = {name: data_format for name, data_format in FORMATS.items() if data_format.location(split)}
    if len(named) > 1:
        locations = " and ".join(f"{name}={data_format.location(split)}" for name, data_format in named.items())
        raise DataError(f"data.*: {locations} each name the whole split: set only one of them.")
    load = next(iter(named.values())).load if named else load_coco
    return load(split, broken_images, for_evaluation)


def filter_for_training(dataset: Dataset, data: DataConfig) -> Dataset:
    """Return a split without the images and boxes that training leaves out; the report counts them.

    These are mmdetection's filters of COCO: images without annotations (`data.filter_empty`; an image that has only
    crowds stays, as background), small images (`data.min_image_side`) and tiny boxes (`data.filter_tiny_boxes`).

    Raises:
        DataError: no image is left.
    """
    if not dataset.has_annotations:
        return dataset  # `check_for_training` refuses it
    report = copy.deepcopy(dataset.report)
    images = []
    for image in dataset.images:
        if data.filter_empty and not image.is_annotated:
            report.note("images without annotations left out of training (data.filter_empty)", image.path.name)
        elif min(image.height, image.width) < data.min_image_side:
            report.note("images left out of training by data.min_image_side", image.path.name)
        else:
            images.append(_without_tiny_boxes(image, report) if data.filter_tiny_boxes else image)
    if dataset.images and not images:
        raise DataError(
            f"data.train: data.filter_empty={data.filter_empty} and data.min_image_side={data.min_image_side} leave "
            f"none of the {len(dataset.images)} images of {data.train.source}."
        )
    report.images, report.objects = len(images), sum(len(image.labels) for image in images)
    return replace(dataset, images=tuple(images), report=report)


def _without_tiny_boxes(image: AnnotatedImage, report: LoadReport) -> AnnotatedImage:
    if image.is_tiny is None or not image.is_tiny.any():
        return image
    for _ in range(int(image.is_tiny.sum())):
        report.note("boxes left out of training by data.filter_tiny_boxes", "one", image.path.name)
    kept = ~image.is_tiny
    return replace(image, boxes=image.boxes[kept], labels=image.labels[kept], is_tiny=None)


def check_for_training(train_set: Dataset, val_set: Dataset, data: DataConfig) -> None:
    """Refuse splits that a training run cannot use.

    If a file lists no annotations at all, all of its images are background.

    Raises:
        DataError: a split has no list of annotations, or the training set has annotations but none of its boxes is
            usable.
    """
    for name, dataset, split in (("train", train_set, data.train), ("val", val_set, data.val)):
        if not dataset.has_annotations:
            raise DataError(
                f"data.{name}: {split.source} has no list 'annotations', as the file of a test set: train with "
                "annotated images; eval.py writes the detections of a test set."
            )
    report = train_set.report
    if report.listed and not report.objects:
        raise DataError(
            f"data.train: none of the {report.listed} annotations of {data.train.source} can be used for training: "
            f"{report.summary()}"
        )
