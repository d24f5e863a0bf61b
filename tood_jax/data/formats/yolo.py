"""YOLO folders: images, a text file of labels for each, and a YAML file with the class names and the splits.

    data.yaml               names: [cat, dog] or {0: cat, 1: dog};  path: …;  train: images/train;  val: images/val
    images/train/a.jpg      labels/train/a.txt: lines CLASS X Y WIDTH HEIGHT (center of a box) or CLASS X0 Y0 X1 Y1 …
    classes.txt             in place of the YAML file: a class per line; the data set has no splits

Numbers are shares of the image. Segments and rotated boxes become the boxes around them. An image without a text file
is background. Class number N gets the category id N + 1.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from tqdm import tqdm

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import BrokenImageError, DataError
from tood_jax.data.formats.coco import parse_coco
from tood_jax.data.formats.folder_splits import (
    Split,
    Splits,
    ambiguous,
    files_of,
    find_images,
    is_image_name,
    subfolder,
)
from tood_jax.data.image_io import image_size
from tood_jax.data.load_report import LoadReport
from tood_jax.untrusted.bounded_json import as_text
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular

UNREADABLE = "images that can't be read, whose objects are placed as on 1000×1000 pixels"
_UNREADABLE_SIZE = (1000, 1000)  # (height, width); evaluation counts the objects as missed
_MAX_YAML_BYTES = 4 << 20
_MAX_LIST_BYTES = 1 << 30
_MAX_LABEL_BYTES = 16 << 20
_MAX_CLASSES = 100_000
_MAX_SHARE = 1e6  # a larger number is no share of an image
_ROUNDING = 1e-6  # shares are written with six digits, so an edge at the border of the image may lie this far outside
_THREADS = 4  # that read image sizes


class _Sources(NamedTuple):
    """Where the images of a split are."""

    file: Path  # the YAML file, or classes.txt
    root: Path  # 'file_name' starts here
    images: Callable[[], list[Path]]
    names: Sequence[str]  # of the classes
    keypoint_numbers: int = 0  # after the box, of a pose data set


def find_splits(folder: Path) -> Splits:
    """Return the splits of a YOLO folder. Raises DataError if several YAML files describe it."""
    described = {file: tree for file in files_of(folder, ".yaml", ".yml") if (tree := _description(file)) is not None}
    usual = [file for file in described if file.stem == "data"]
    if len(described) > 1 and len(usual) != 1:
        raise ambiguous(folder, "several YAML files with names and train", [file.name for file in described])
    if described:
        file = (usual or list(described))[0]
        return _splits_of_yaml(file, described[file])
    return _splits_of_classes(folder)


def _description(file: Path) -> dict[str, Any] | None:
    """Return the content of a YAML file of a YOLO data set; None for any other."""
    try:
        text = read_regular(file, _MAX_YAML_BYTES)
    except OSError as error:
        raise DataError(f"{printable(file)} can't be read ({error.strerror or error}).") from None
    if b"names" not in text or (b"train" not in text and b"val" not in text):
        return None
    try:
        tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{printable(file)} is not YAML ({printable(error, 200)}): correct the file.") from None
    return tree if isinstance(tree, dict) and "names" in tree and {"train", "val", "test"} & tree.keys() else None


def _splits_of_yaml(file: Path, tree: dict[str, Any]) -> Splits:
    names = _class_names(tree["names"], file)
    count = tree.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{printable(file)}: nc is {printable(count, 40)}, but there are {len(names)} names.")
    shape = tree.get("kpt_shape")
    keypoints = shape[0] * shape[1] if isinstance(shape, list) and [type(n) for n in shape] == [int, int] else 0
    splits = {}
    for split, keys in {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}.items():
        entry = next((tree[key] for key in keys if tree.get(key)), None)
        if entry is not None:
            source = _Sources(file, file.parent, partial(_images_of_entry, file, tree, split, entry), names, keypoints)
            splits[split] = Split(f"{file}: {split}", partial(_load, source))
    return splits


def _class_names(value: Any, file: Path) -> list[str]:
    """Return the names of a list, or of a mapping from 0, 1, …. Raises DataError."""
    if isinstance(value, dict):
        if set(value) != set(range(len(value))):
            raise DataError(f"{printable(file)}: names must be numbered 0, 1, … without gaps.")
        value = [value[number] for number in range(len(value))]
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_CLASSES:
        raise DataError(f"{printable(file)}: names must be a list of class names, or a mapping from 0, 1, … to them.")
    names = [as_text(str(name) if isinstance(name, int | float) else name) for name in value]
    if not all(names):
        raise DataError(f"{printable(file)}: names has an entry that is no text: {printable(value, 120)}.")
    return [str(name) for name in names]


def _images_of_entry(file: Path, tree: dict[str, Any], split: str, entry: Any) -> list[Path]:
    """Return the images of train, val or test: a folder, a text file with paths, or a list of these."""
    images: list[Path] = []
    for part in entry if isinstance(entry, list) else [entry]:
        text = as_text(part)
        if not text or "\0" in text:
            raise DataError(f"{printable(file)}: {split} must be a folder or a text file, not {printable(part, 80)}.")
        place = _find_place(file.parent, str(tree.get("path") or ""), text)
        if place is None:
            raise DataError(f"{printable(file)}: {split} names {printable(text, 120)}, which does not exist.")
        images += find_images(place) if place.is_dir() else _images_of_list(place)
    if not images:
        raise DataError(f"{printable(file)}: {split} has no images in {printable(entry, 120)}.")
    return images


def _find_place(folder: Path, base: str, entry: str) -> Path | None:
    """Return the file or folder that an entry means: exports are moved, so that path and ../ often lead nowhere."""
    entry = entry.replace("\\", "/")
    inner = "/".join(part for part in entry.split("/") if part not in ("..", ".", ""))
    candidates = (folder / base / entry, folder / entry, folder / inner, folder / base / inner)
    return next((path for path in candidates if path.exists()), None)


def _images_of_list(file: Path) -> list[Path]:
    """Return the images that a text file names, relative to its folder."""
    lines = _read_text(file, _MAX_LIST_BYTES).splitlines()
    return [file.parent / line.strip().replace("\\", "/") for line in lines if is_image_name(Path(line.strip()).name)]


def _splits_of_classes(folder: Path) -> Splits:
    """Return the split of a folder with classes.txt, images and labels, as Label Studio exports it."""
    images, labels, file = subfolder(folder, "images"), subfolder(folder, "labels"), folder / "classes.txt"
    if not (file.is_file() and images and labels):
        return {}
    names = _class_names(
        [line.strip() for line in _read_text(file, _MAX_YAML_BYTES).splitlines() if line.strip()], file
    )
    return {"": Split(str(file), partial(_load, _Sources(file, folder, partial(find_images, images), names)))}


def _load(source: _Sources, broken_images: Literal["fail", "skip"], for_evaluation: bool) -> Dataset:
    report = LoadReport()
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    paths: list[Path] = []
    for path, size in _sizes(source.images(), broken_images, report):
        boxes = list(_boxes(_label_file(path), len(source.names), source.keypoint_numbers, report))
        paths.append(path)
        name = str(path.relative_to(source.root)) if path.is_relative_to(source.root) else str(path)
        entries.append({"id": len(paths), "file_name": name, "height": size[0], "width": size[1]})
        annotations += [_annotation(len(paths), label, box, size) for label, box in boxes]
    if not entries:
        raise DataError(f"{printable(source.file)} names no image that can be read.")
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(source.names)]
    tree = {"images": entries, "annotations": annotations, "categories": categories}
    return parse_coco(tree, source.file, lambda names: paths, report, for_evaluation)


def _sizes(paths: Sequence[Path], broken_images: str, report: LoadReport) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yield images with their (height, width)."""

    def read(path: Path) -> tuple[int, int] | BrokenImageError:
        try:
            return image_size(path)
        except BrokenImageError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = pool.map(read, paths)
        progress = tqdm(sizes, total=len(paths), desc="image sizes", disable=None, leave=False)
        for path, size in zip(paths, progress, strict=True):
            if isinstance(size, tuple):
                yield path, size
            elif broken_images == "fail":
                raise size
            else:
                report.note(UNREADABLE, path.name)
                yield path, _UNREADABLE_SIZE


def _label_file(image: Path) -> Path:
    """Return the file of the labels: in a folder `labels` in place of the last `images` of the path, or beside it."""
    parts = list(image.parts)
    positions = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if positions:
        parts[positions[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _boxes(
    file: Path, num_classes: int, keypoint_numbers: int, report: LoadReport
) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Yield (class number, (x0, y0, x1, y1) in shares of the image) of a file of labels. Raises DataError."""
    if not file.exists():
        return
    for number, line in enumerate(_read_text(file, _MAX_LABEL_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        label, values = _numbers(line)
        if label is None or not 0 <= label < num_classes:
            what = f"a class from 0 to {num_classes - 1}, not {printable(line.split()[0], 40)}"
            raise DataError(f"{printable(file)}, line {number} must begin with {what}.")
        if keypoint_numbers and len(values) == 4 + keypoint_numbers:
            values = values[:4]
        if len(values) == 4:
            x, y, width, height = values
            yield label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            report.note("segments taken as the boxes around them", f"{file.name}, line {number}")
            yield label, (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        else:
            raise DataError(
                f"{printable(file)}, line {number} must have a class and x, y, width, height, or the points of a "
                f"segment, as shares of the image: {printable(line, 80)}."
            )


def _numbers(line: str) -> tuple[int | None, list[float]]:
    """Return the class of a line and its other numbers; (None, []) or (class, []) for what is not a number."""
    first, *rest = line.split()
    try:
        label = int(first) if first.lstrip("+-").isdecimal() else int(float(first)) if float(first) % 1 == 0 else None
    except (ValueError, OverflowError):
        return None, []
    try:
        values = [float(word) for word in rest]
    except ValueError:
        return label, []
    return label, values if all(abs(value) <= _MAX_SHARE for value in values) else []


def _annotation(
    image_id: int, label: int, box: tuple[float, float, float, float], size: tuple[int, int]
) -> dict[str, Any]:
    height, width = size
    left, upper, right, lower = (_at_border(share) for share in box)
    x0, y0, x1, y1 = left * width, upper * height, right * width, lower * height
    area = (x1 - x0) * (y1 - y0)
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": image_id, "category_id": label + 1, "bbox": bbox, "area": area, "iscrowd": 0}


def _at_border(share: float) -> float:
    """Return 0 or 1 for an edge that is there but for rounding."""
    return next((border for border in (0.0, 1.0) if abs(share - border) <= _ROUNDING), share)


def _read_text(file: Path, max_bytes: int) -> str:
    try:
        return read_regular(file, max_bytes).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{printable(file)} can't be read ({error.strerror or error}).") from None
    except UnicodeDecodeError:
        raise DataError(f"{printable(file)} is not a text file in UTF-8.") from None
