"""Pascal VOC folders: an XML file per image.

    Annotations/a.xml  JPEGImages/a.jpg  ImageSets/Main/train.txt, val.txt, …    Pascal VOC; other names below
    train/a.xml        train/a.jpg                                               a folder per split (Roboflow)
    a.xml              a.jpg                                                     without splits

Pixels of VOC count from 1 and its boxes include their last pixel, so that (1, 1, WIDTH, HEIGHT) is the whole image, as
in Detectron2. If any box of the folder begins at 0, the tool that wrote it counts from 0, and numbers are taken as
edges. Classes are the names in all files of the folder in alphabetical order, with the ids 1, 2, ….
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import parse_directory
from tood_jax.data.formats.folder_splits import (
    Split,
    Splits,
    files_of,
    find_images,
    split_of,
    subfolder,
    subfolders,
)
from tood_jax.data.load_report import LoadReport
from tood_jax.untrusted.bounded_json import MAX_TEXT
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.untrusted.safe_xml import XmlError, parse_xml

_ANNOTATIONS = ("annotations", "annots", "xmls", "xml", "labels")  # names of folders, in any case
_IMAGES = ("jpegimages", "images", "imgs", "jpegs")
_MAX_XML_BYTES = 4 << 20
_MAX_LIST_BYTES = 256 << 20


class _Object(NamedTuple):
    """One object of a file."""

    name: str  # of its class
    corners: tuple[float, float, float, float]  # as in the file
    difficult: int


class _Image(NamedTuple):
    """What a file says about its image."""

    xml: Path
    file_name: str  # as in the file; "" if it has none
    size: tuple[int, int] | None  # (height, width)
    objects: list[_Object]


def find_splits(folder: Path) -> Splits:
    """Return the splits of a Pascal VOC folder; {} if it has no XML files of images."""
    by_split = {
        split: place for inner in subfolders(folder) if (split := split_of(inner.name)) if (place := _pair(inner))
    }
    if by_split:
        reader = _Reader([xmls for xmls, _ in by_split.values()])
        return {split: _split(reader, xmls, images, None) for split, (xmls, images) in by_split.items()}
    pair = _pair(folder)
    if pair is None:
        return {}
    reader, lists = _Reader([pair[0]]), _image_sets(folder)
    if "train" not in lists and "val" not in lists:
        return {"": _split(reader, *pair, None)}
    return {split: _split(reader, *pair, file) for split, file in lists.items()}


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of the XML files and of the images; None if there is no XML file of an image."""
    xmls = subfolder(folder, *_ANNOTATIONS)
    for place in (xmls, folder):
        first = next(iter(files_of(place, ".xml")), None) if place else None
        if place and first and _root(first).tag == "annotation":
            return place, subfolder(folder, *_IMAGES) or folder
    return None


def _image_sets(folder: Path) -> dict[str, Path]:
    """Return the lists train.txt, val.txt and test.txt in ImageSets/Main, by split."""
    sets = subfolder(folder, "imagesets")
    main = sets and (subfolder(sets, "main") or sets)
    return {file.stem: file for file in files_of(main, ".txt") if file.stem in ("train", "val", "test")} if main else {}


def _split(reader: "_Reader", xmls: Path, images: Path, names: Path | None) -> Split:
    return Split(str(names or xmls), partial(_load, reader, xmls, images, names))


class _Reader:
    """All XML files of a data set, read once for all splits, which must have the same classes."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = folders

    @cached_property
    def images(self) -> dict[Path, list[_Image]]:
        """Files by folder."""
        return {folder: [_read_image(file) for file in files_of(folder, ".xml")] for folder in self._folders}

    @cached_property
    def class_ids(self) -> dict[str, int]:
        names = {one.name for images in self.images.values() for image in images for one in image.objects}
        return {name: number for number, name in enumerate(sorted(names), 1)}

    @cached_property
    def first_pixel(self) -> int:
        """The number of the first pixel: 1, or 0 if a box begins there."""
        boxes = (one.corners for images in self.images.values() for image in images for one in image.objects)
        return 0 if any(min(x0, y0) < 1 for x0, y0, _, _ in boxes) else 1


def _load(
    reader: _Reader,
    xmls: Path,
    images: Path,
    names: Path | None,
    broken_images: Literal["fail", "skip"],
    for_evaluation: bool,
) -> Dataset:
    files = {image.xml.stem: image for image in reader.images[xmls]}
    if not reader.class_ids:
        raise DataError(f"None of the {len(files)} XML files in {printable(xmls)} has an object.")
    chosen = list(files) if names is None else list(dict.fromkeys(_names_of(names)))
    if unknown := [name for name in chosen if name not in files]:
        raise DataError(
            f"{printable(names)} names {printable(unknown[0], 80)}, but there is no {printable(unknown[0], 80)}.xml in "
            f"{printable(xmls)} ({len(unknown)} such names): restore the files or remove the lines."
        )
    by_stem = {path.relative_to(images).with_suffix("").as_posix(): path for path in reversed(find_images(images))}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate((files[name] for name in chosen), 1):
        entry = {"id": number, "file_name": _image_name(image, by_stem, images)}
        height, width = image.size or (None, None)
        entries.append(entry if image.size is None else {**entry, "height": height, "width": width})
        annotations += [_annotation(one, number, reader) for one in image.objects]
    if not entries:
        raise DataError(f"{printable(names or xmls)} names no image.")
    categories = [{"id": id_, "name": name} for name, id_ in reader.class_ids.items()]
    tree = {"images": entries, "annotations": annotations, "categories": categories}
    report = LoadReport()
    if reader.first_pixel == 0:
        report.note("data sets with boxes that begin at pixel 0, so their numbers are taken as edges", xmls.name)
    return parse_directory(tree, names or xmls, images, broken_images, for_evaluation, report)


def _names_of(file: Path) -> Iterator[str]:
    """Yield the first word of each line, without a suffix of an image."""
    for line in _read(file, _MAX_LIST_BYTES).decode(errors="replace").splitlines():
        if line.strip():
            yield line.split()[0]


def _image_name(image: _Image, by_stem: dict[str, Path], images: Path) -> str:
    """Return the image with the name of the XML file, or else the name in the file."""
    if path := by_stem.get(image.xml.stem):
        return path.relative_to(images).as_posix()
    return image.file_name or f"{image.xml.stem}.jpg"


def _annotation(one: _Object, image_id: int, reader: _Reader) -> dict[str, Any]:
    x0, y0, x1, y1 = one.corners
    x0, y0 = x0 - reader.first_pixel, y0 - reader.first_pixel
    annotation = {"image_id": image_id, "category_id": reader.class_ids[one.name], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return {**annotation, "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, "difficult": one.difficult}


def _read_image(file: Path) -> _Image:
    root = _root(file)
    if root.tag != "annotation":
        raise DataError(f"{printable(file)} is XML with <{printable(root.tag, 40)}>, not Pascal VOC's <annotation>.")
    height, width = (int(_number(root.find(f"size/{side}")) or 0) for side in ("height", "width"))
    size = (height, width) if min(height, width) > 0 else None
    name = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return _Image(file, name[:MAX_TEXT], size, [_object(one, file) for one in root.iter("object")])


def _object(one: Element, file: Path) -> _Object:
    name = (one.findtext("name") or "").strip()
    if not 0 < len(name) <= MAX_TEXT:
        raise DataError(f"{printable(file)}: an <object> has no <name>.")
    corners = [_number(one.find(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        raise DataError(
            f"{printable(file)}: the object {printable(name, 60)} needs <bndbox> with numbers xmin to ymax."
        )
    return _Object(name, tuple(corners), int(_number(one.find("difficult")) == 1))  # type: ignore[arg-type]


def _number(element: Element | None) -> float | None:
    try:
        number = float((element.text or "") if element is not None else "")
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= 1e9 else None


def _root(file: Path) -> Element:
    try:
        return parse_xml(_read(file, _MAX_XML_BYTES), _MAX_XML_BYTES)
    except XmlError as error:
        raise DataError(f"{printable(file)} {error}: correct or remove the file.") from None


def _read(file: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(file, max_bytes)
    except OSError as error:
        raise DataError(f"{printable(file)} can't be read ({error.strerror or error}).") from None
