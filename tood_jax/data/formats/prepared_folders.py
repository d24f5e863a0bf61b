"""Folders of records and of TensorFlow Datasets, as `--data` recognizes them.

records.json            one folder of records without splits
train/records.json, …   a folder of records for each split
dataset_info.json       a prepared data set of TFDS; it may lie in the folder of its only version
"""

from pathlib import Path
from typing import Any

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import INDEX, load_array_record
from tood_jax.data.formats.folder_splits import Split, Splits, ambiguous, split_of, subfolders
from tood_jax.data.formats.tfds import load_tfds
from tood_jax.untrusted.bounded_json import JsonError, as_text, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular

_TFDS_INFO = "dataset_info.json"
_TFDS_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_MAX_INFO_BYTES = 64 << 20


def find_record_splits(folder: Path) -> Splits:
    """Return the splits of a folder of records, or of folders of records that are named after splits."""
    if (folder / INDEX).is_file():
        return {"": _records(folder)}
    found: dict[str, list[Path]] = {}
    for inner in subfolders(folder):
        if (inner / INDEX).is_file() and (split := split_of(inner.name)):
            found.setdefault(split, []).append(inner)
    for split, folders in found.items():
        if len(folders) > 1:
            raise ambiguous(folder, f"several folders of records of the split {split}", [one.name for one in folders])
    return {split: _records(folders[0]) for split, folders in found.items()}


def _records(folder: Path) -> Split:
    return Split(str(folder), lambda broken_images, for_evaluation: load_array_record(str(folder), for_evaluation))


def find_tfds_splits(folder: Path) -> Splits:
    """Return the splits train, validation and test of a data set that TFDS prepared."""
    file = folder / _TFDS_INFO
    if not file.is_file():
        return {}
    try:
        info = parse_json(read_regular(file, _MAX_INFO_BYTES), _MAX_INFO_BYTES)
    except (JsonError, OSError) as error:
        reason = error if isinstance(error, JsonError) else f"can't be read ({error.strerror or error})"
        raise DataError(f"{printable(file)} {reason}: prepare the set again.") from None
    entries = info.get("splits") if isinstance(info, dict) else None
    names = [as_text(entry.get("name")) for entry in entries or () if isinstance(entry, dict)]
    return {_TFDS_SPLITS[name]: _tfds(folder, name) for name in names if name in _TFDS_SPLITS}


def _tfds(folder: Path, name: str) -> Split:
    def load(_: Any, for_evaluation: bool) -> Dataset:
        return load_tfds(str(folder), name, for_evaluation)

    return Split(f"{folder} ({name})", load)
