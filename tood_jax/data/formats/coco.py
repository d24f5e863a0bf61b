"""COCO directories: a folder of images and an instances JSON. The other formats also use this parser.

Crowds and boxes marked `ignore` or `difficult` take no part in training. `Dataset.ground_truth`, for evaluation, has
every box as it is in the file, so that AP is that of pycocotools.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tood_jax.config import SplitConfig
from tood_jax.data.dataset import AnnotatedImage, ClassInfo, Dataset, Id
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco_annotations import Annotation, AnnotationParser, ImageSize
from tood_jax.data.formats.coco_values import as_id, as_integer_id, require_text, short_repr
from tood_jax.data.formats.image_folder import check_names, examples, find_missing, missing_error
from tood_jax.data.image_io import image_size
from tood_jax.data.load_report import LoadReport
from tood_jax.data.paths import ImagePath, as_path, is_file, is_folder, is_remote, read_bytes
from tood_jax.untrusted.bounded_json import JsonError, as_number, as_text, parse_json
from tood_jax.untrusted.printable import printable

_MAX_SIDE = 1e6  # pixels; a larger size in the JSON is replaced by that of the image file


def load_coco(
    split: SplitConfig, broken_images: Literal["fail", "skip"] = "fail", for_evaluation: bool = True
) -> Dataset:
    """Load a folder of images and an instances JSON; both may lie in an object store.

    Args:
        split: names both.
        broken_images: data.broken_images: whether missing images are an error or only reported.
        for_evaluation: keep the annotations as in the file; training needs only the boxes that it learns from.

    Raises:
        DataError: the split cannot be used. What can be repaired is repaired, counted and named in `report`.
    """
    file, folder = as_path(split.annotations), as_path(split.images)
    if not is_file(file):
        raise DataError(
            f"There is no annotation file {split.annotations or '(empty name)'}: set data.*.annotations to a COCO "
            "instances JSON."
        )
    if not is_folder(folder):
        raise DataError(f"There is no image folder {folder}: set data.*.images to the folder of the images of {file}.")
    return parse_directory(read_coco_json(read_bytes(file), file), file, folder, broken_images, for_evaluation)


def parse_directory(
    raw: Mapping[str, Any],
    file: object,
    folder: Any,
    broken_images: Literal["fail", "skip"],
    for_evaluation: bool,
    report: LoadReport | None = None,
) -> Dataset:
    """Check and repair the content of an instances JSON whose images are files of a folder.

    Args:
        raw: as `read_coco_json` returns it.
        file: its name in errors.
        folder: a path of `as_path` that 'file_name' starts from.
        broken_images: as of `load_coco`, as is `for_evaluation`.
        report: counts repairs; a new one by default.

    Raises:
        DataError: as `load_coco`.
    """
    report = LoadReport() if report is None else report

    def locate(names: Sequence[str]) -> list[ImagePath]:
        check_names(names, file)
        _check_images(folder, names, file, broken_images, report)
        return [folder / name for name in names]

    return parse_coco(raw, file, locate, report, for_evaluation)


def parse_coco(
    raw: Mapping[str, Any],
    file: object,
    locate: Callable[[Sequence[str]], Sequence[ImagePath]],
    report: LoadReport | None = None,
    for_evaluation: bool = True,
) -> Dataset:
    """Check and repair the content of an instances JSON.

    Args:
        raw: as `read_coco_json` returns it.
        file: its name in errors.
        locate: returns the paths of the images that have these 'file_name's, the list `images` in its order.
        report: counts repairs; a new one by default.
        for_evaluation: as of `load_coco`.

    Raises:
        DataError: as `load_coco`.
    """
    report = LoadReport() if report is None else report
    entries = list(_image_entries(raw, file))
    paths = locate([entry.name for entry in entries])
    classes = read_classes(raw, file)
    _report_unusual_classes(raw["categories"], classes, report)
    located = _locate_images(entries, paths, file, report)
    sizes = {id_: ImageSize(image.path.name, image.width, image.height) for id_, image in located.items()}
    labels = {info.id: label for label, info in enumerate(classes)}
    ground_truth: list[dict[str, Any]] = []
    for_training: dict[Id, list[Annotation]] = {}
    annotated: set[Id] = set()
    for annotation in AnnotationParser(file, sizes, labels, report).parse(raw.get("annotations", ())):
        if for_evaluation:
            ground_truth.append(annotation.ground_truth)
        annotated.add(annotation.ground_truth["image_id"])
        if annotation.training_box is not None:
            for_training.setdefault(annotation.ground_truth["image_id"], []).append(annotation)
    images = tuple(
        _annotate(id_, image, for_training.get(id_, ()), id_ in annotated, report) for id_, image in located.items()
    )
    report.images, report.objects = len(images), sum(len(image.labels) for image in images)
    has_annotations = "annotations" in raw
    if has_annotations:
        _report_empty(classes, images, report)
    return Dataset(classes, images, report, tuple(ground_truth) if for_evaluation else None, has_annotations)


def read_coco_json(data: bytes, file: object) -> dict[str, Any]:
    """Return the content of an instances JSON; only the list `annotations` may be missing.

    Raises:
        DataError: names `file`.
    """
    try:
        raw = parse_json(data)
    except JsonError as error:
        raise DataError(f"{file} {error}: give a COCO instances JSON.") from None
    if not isinstance(raw, dict):
        raise DataError(
            f"{file} holds a JSON {type(raw).__name__}, not COCO's object with images, annotations, categories."
        )
    for name in ("images", "annotations", "categories"):
        if not isinstance(raw.get(name, [] if name == "annotations" else None), list):
            raise DataError(
                f"{file} has no list {name!r}: it must be a COCO instances file (images, annotations, categories)."
            )
    for name in ("images", "categories"):
        if not raw[name]:
            raise DataError(f"{file}: the list {name!r} is empty, so there is nothing to learn or to evaluate.")
    return raw


def read_classes(raw: Mapping[str, Any], file: object) -> tuple[ClassInfo, ...]:
    """Return the categories of an instances JSON in the order of their ids. Raises DataError."""
    names: dict[int, str] = {}
    for entry in raw["categories"]:
        id_ = as_integer_id(entry.get("id")) if isinstance(entry, dict) else None
        if id_ is None:
            raise DataError(f"{file}: categories: {short_repr(entry)} has no integer 'id'.")
        name = entry.get("name", id_)
        name = str(name) if isinstance(name, int) else require_text(name, f"{file}: categories: 'name' of id {id_}")
        if id_ in names:
            raise DataError(
                f"{file}: categories: id {id_} occurs twice ({short_repr(names[id_])} and {short_repr(name)}); ids "
                "must differ."
            )
        names[id_] = name
    return tuple(ClassInfo(id_, names[id_]) for id_ in sorted(names))


def _check_images(folder: Any, names: Sequence[str], file: object, broken_images: str, report: LoadReport) -> None:
    """Find missing images: all of a local folder; in an object store, where each costs a request, only the first."""
    if is_remote(folder):
        if not is_file(folder / names[0]):
            raise DataError(
                f"{folder / names[0]}, the first image of {file}, does not exist: set data.*.images to the folder "
                "that 'file_name' starts from."
            )
        return
    missing = find_missing(folder, names)
    if missing and broken_images == "fail":
        raise missing_error(missing, len(names), folder, file)
    for image in missing:
        report.note("images missing in the folder", examples([image]))


def _report_unusual_classes(entries: Sequence[Any], classes: Sequence[ClassInfo], report: LoadReport) -> None:
    for entry in entries:
        if not isinstance(entry["id"], int):
            report.note("category ids taken as integers", short_repr(entry["id"]))
    counts = Counter(info.name for info in classes)
    for info in classes:
        if counts[info.name] > 1:
            report.note("categories that share their name with another", f"{printable(info.name, 60)}, id {info.id}")


def _report_empty(classes: Sequence[ClassInfo], images: Sequence[AnnotatedImage], report: LoadReport) -> None:
    for image in images:
        if not len(image.labels):
            report.note("images without objects", image.path.name)
    present = {label for image in images for label in image.labels.tolist()}
    for label, info in enumerate(classes):
        if label not in present:
            report.note("classes without objects", info.name)


class _ImageEntry(NamedTuple):
    """An entry of the list `images`."""

    id: Id
    name: str  # 'file_name'
    height: int | None  # pixels; None if it must be read from the image file
    width: int | None


class _LocatedImage(NamedTuple):
    """An image whose path and size are known."""

    path: ImagePath
    width: int  # pixels
    height: int


def _image_entries(raw: Mapping[str, Any], file: object) -> Iterator[_ImageEntry]:
    for entry in raw["images"]:
        is_object = isinstance(entry, dict)
        id_, name = (as_id(entry.get("id")), as_text(entry.get("file_name"))) if is_object else (None, None)
        if id_ is None or not name:
            raise DataError(
                f"{file}: images: {short_repr(entry)} needs an 'id' (number or text) and a 'file_name' (text that "
                "UTF-8 can hold)."
            )
        yield _ImageEntry(id_, name, _side(entry.get("height")), _side(entry.get("width")))


def _side(value: Any) -> int | None:
    side = as_number(value, 1, _MAX_SIDE)
    return None if side is None else int(side)


def _locate_images(
    entries: Sequence[_ImageEntry], paths: Sequence[ImagePath], file: object, report: LoadReport
) -> dict[Id, _LocatedImage]:
    images: dict[Id, _LocatedImage] = {}
    for (id_, name, height, width), path in zip(entries, paths, strict=True):
        if id_ in images:
            raise DataError(
                f"{file}: images: id {short_repr(id_)} occurs twice ({printable(images[id_].path.name)} and "
                f"{printable(name)}); ids must differ."
            )
        if isinstance(id_, str) != isinstance(entries[0].id, str):
            raise DataError(
                f"{file}: images: ids are numbers and texts ({short_repr(entries[0].id)}, {short_repr(id_)}), which "
                "have no common order; use only one of the two."
            )
        if height is None or width is None:
            height, width = image_size(path)
            report.note("image sizes read from the files", name)
        images[id_] = _LocatedImage(path, width, height)
    return images


def _annotate(
    id_: Id, image: _LocatedImage, objects: Sequence[Annotation], is_annotated: bool, report: LoadReport
) -> AnnotatedImage:
    xywh = np.asarray([annotation.training_box for annotation in objects], np.float32).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    labels = np.asarray([annotation.label for annotation in objects], np.int32)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a width of 1e-6 is 0 in float32
    for _ in range(int((~has_area).sum())):
        report.note("boxes without area or outside the image left out of training", "one", image.path.name)
    is_tiny = np.asarray([annotation.is_tiny for annotation in objects], bool)
    arrays = boxes[has_area], labels[has_area], is_tiny[has_area]
    return AnnotatedImage(id_, image.path, image.width, image.height, *arrays, is_annotated)
