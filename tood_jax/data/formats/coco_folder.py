"""Folders with COCO files: COCO's own layout, and the exports of Roboflow, CVAT, Label Studio, Datumaro and FiftyOne.

    annotations/instances_train.json, …  with  train/, train2017/, images/train/, images/default/ or images/
    train/_annotations.coco.json         with the images beside it, or in a folder data/ or images/ beside it
    result.json                          with images/, or the images beside it; a file without splits

A file belongs to the split that its own name says, or else that of its folder. The image folder is the one that has
the images of the file.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import parse_directory, read_coco_json
from tood_jax.data.formats.folder_splits import Split, Splits, ambiguous, files_of, listed, split_of, subfolders
from tood_jax.data.formats.image_folder import check_names
from tood_jax.data.paths import read_bytes
from tood_jax.untrusted.printable import printable

_OTHER_TASKS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")  # of COCO; by the start of the name
_PREPARED = ("records.json", "dataset_info.json")  # files of records and of TFDS, whose JSON files are their own
_KEYS = (b'"images"', b'"categories"')
_COMPARED = 50  # images of a file that are looked up in each folder
_CHUNK = 1 << 20


def find_splits(folder: Path) -> Splits:
    """Return the splits of a folder with COCO files; {} if it has none. Raises DataError if two are of one split."""
    files: dict[str, list[Path]] = {}
    for file in _candidates(folder):
        if _is_coco(file):
            split = split_of(file.stem) or (split_of(file.parent.name) if file.parent != folder else "")
            files.setdefault(split, []).append(file)
    splits = {}
    for split, found in files.items():
        instances = [file for file in found if not file.name.startswith(_OTHER_TASKS)] or found
        if len(instances) > 1:
            what = f"several COCO files of the split {split}" if split else "several COCO files that name no split"
            raise ambiguous(folder, what, [file.relative_to(folder) for file in instances])
        splits[split] = Split(str(instances[0]), partial(_load, folder, instances[0], split))
    return splits


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield the JSON files in the places where COCO files lie."""
    inner = [path for path in subfolders(folder) if path.name.lower() == "annotations" or split_of(path.name)]
    for place in (folder, *inner):
        if not any((place / name).is_file() for name in _PREPARED):
            yield from files_of(place, ".json")


def _is_coco(file: Path) -> bool:
    """Return whether a JSON file has COCO's lists, by its text: large files take long to parse."""
    missing, rest = set(_KEYS), b""
    try:
        with file.open("rb") as stream:
            while missing and (chunk := stream.read(_CHUNK)):
                missing = {key for key in missing if key not in rest + chunk}
                rest = chunk[-16:]
    except OSError:
        return False
    return not missing


def _load(
    folder: Path, file: Path, split: str, broken_images: Literal["fail", "skip"], for_evaluation: bool
) -> Dataset:
    try:
        raw = read_coco_json(read_bytes(file), file)
    except OSError as error:
        raise DataError(f"{printable(file)} can't be read ({error.strerror or error}): check the file.") from None
    images = _image_folder(folder, file, split, raw)
    return parse_directory(raw, file, images, broken_images, for_evaluation)


def _image_folder(folder: Path, file: Path, split: str, raw: dict[str, Any]) -> Path:
    """Return the folder that has most of the first images of a file. Raises DataError if none has any."""
    entries = [entry for entry in raw["images"][:_COMPARED] if isinstance(entry, dict)]
    names = [name for entry in entries if isinstance(name := entry.get("file_name"), str)]
    check_names(names, file)
    places = _image_places(folder, file, split)
    found = [_count_present(place, names) for place in places]
    if names and not any(found):
        where = listed("the folder itself" if place == folder else place.relative_to(folder) for place in places)
        raise DataError(
            f"None of the first {len(names)} images of {printable(file)} ({printable(names[0], 120)}, …) is in a "
            f"folder of {printable(folder)} ({where}): move the images there, or set data.*.images and "
            "data.*.annotations."
        )
    return places[found.index(max(found))]


def _image_places(folder: Path, file: Path, split: str) -> list[Path]:
    """Return the folders that may have the images of a file, the most likely first."""
    own_name = file.stem.rpartition("_")[2]  # of images/default with instances_default.json
    inner = [path for path in subfolders(folder) if path.name.lower() != "annotations"]
    nested = [deep for path in inner for deep in subfolders(path)]
    named = [path for path in (*nested, *inner) if path.name == own_name]
    of_split = [path for path in (*nested, *inner) if split and split_of(path.name) == split]
    beside = (
        [] if file.parent == folder or file.parent.name == "annotations" else [file.parent, *subfolders(file.parent)]
    )
    return list(dict.fromkeys([*beside, *named, *of_split, *inner, *nested, folder]))


def _count_present(place: Path, names: Sequence[str]) -> int:
    return sum((place / PurePosixPath(name.replace("\\", "/"))).is_file() for name in names)
