"""Data sets that TensorFlow Datasets prepared as ArrayRecord, such as coco/2017, read without TensorFlow.

    tfds build coco/2017 --file_format=array_record      # once, in another environment, because it needs TensorFlow

Their records contain neither the image's size nor COCO's category ids, and boxes are shares of the image in float32.
One pass over all records converts them to the content of an instances JSON, which `coco.py` then parses. It is stored
in an index file beside the data (or in the cache folder, if that is not writable) and made again when the data changes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import record_paths
from tood_jax.data.formats.coco import parse_coco
from tood_jax.data.formats.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.data.image_io import image_size
from tood_jax.data.paths import as_path, cache_folder, is_file, is_folder, is_remote, local_copy, read_bytes
from tood_jax.untrusted.bounded_json import JsonError, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular

FORMAT = 1  # of the index file
_DESCRIPTIONS = ("dataset_info.json", "features.json")
_MAX_DESCRIPTION_BYTES = 64 << 20  # of each; COCO's have 60 kB
# Keys whose values name classes; TFDS imports their modules. Protocol buffers spell the key in two ways, and TFDS up to
# 4.4 wrote "type". The values of the text keys are JSON in a string, which TFDS parses as well.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_TEXT_KEYS = ("json", "content")
_THREADS = 4  # that read records while the index is built


class TfdsReader:
    """Read the encoded images of a split by position.

    Args:
        source: of `builder.as_data_source`, with undecoded images.
    """

    def __init__(self, source: Any):
        self._source = source

    def image(self, position: int, name: str) -> bytes:
        """Return the encoded image of a record."""
        data: bytes = self._source[position]["image"]
        return data


def load_tfds(location: str, split: str, for_evaluation: bool = True) -> Dataset:
    """Load a split of a prepared data set. If it lies in an object store, its shards are copied to this machine once.

    Raises:
        DataError: the data set or the split cannot be used.
    """
    builder = _open_builder(as_path(location), location)
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError):
        known = ", ".join(builder.info.splits) or "none"
        raise DataError(f"{location} has no split {split!r}: set data.*.tfds_split to one of {known}.") from None
    folder = as_path(location)
    shards = [_local_shard(folder / os.path.basename(part.filename), location) for part in parts]
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    reader = TfdsReader(source)
    fingerprint = _fingerprint(Path(builder.data_dir), shards, split)
    tree = _read_index(Path(builder.data_dir), fingerprint, len(source))
    if tree is None:
        tree = _convert_to_coco(builder, source, location)
        _write_index(Path(builder.data_dir), fingerprint, tree)
    name = f"{location} ({split})"
    return parse_coco(tree, name, partial(record_paths, reader, name), for_evaluation=for_evaluation)


def category_ids(names: Sequence[str]) -> list[int]:
    """Return COCO's ids for COCO's eighty names, and 1, 2, … for any others."""
    if tuple(names) == COCO_NAMES:
        return [info.id for info in COCO_CLASSES]
    return list(range(1, len(names) + 1))


def absolute_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert boxes from shares of the image to pixels.

    COCO's boxes are multiples of 0.01 pixels. An edge that may be such a multiple within the precision of float32 is
    rounded to it: so COCO's numbers are restored exactly, and all others as exactly as float32 holds them.

    Args:
        boxes: [n, 4] (ymin, xmin, ymax, xmax), shares of the image (0–1) in float32.

    Returns:
        [n, 4] xywh float64, pixels.
    """
    shares = np.asarray(boxes, np.float32).astype(np.float64).reshape(-1, 4)
    size = np.array([height, width, height, width], np.float64)
    edges = shares * size
    hundredths = np.round(edges, 2)
    is_hundredth = np.abs(edges - hundredths) <= size * 2.0**-24  # float32's spacing just below 1
    edges = np.where(is_hundredth, hundredths, edges)
    sides = edges[:, 2:] - edges[:, :2]  # (height, width)
    sides = np.where(is_hundredth[:, :2] & is_hundredth[:, 2:], np.round(sides, 2), sides)
    return np.stack([edges[:, 1], edges[:, 0], sides[:, 1], sides[:, 0]], axis=1)


def _open_builder(folder: Any, location: str) -> Any:
    """Return the builder of a prepared folder; descriptions in an object store are copied to this machine."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"data.*.tfds = {location} needs TensorFlow Datasets (not TensorFlow), which isn't installed ({error}): "
            "pip install tensorflow-datasets importlib_resources"
        ) from None
    for file in _DESCRIPTIONS:
        if not is_file(folder / file):
            reason = "holds no such file" if is_folder(folder) else "doesn't exist"
            raise DataError(
                f"There is no {file} in data.*.tfds = {location}, which {reason}: name the folder of the data set's "
                "version, such as …/coco/2017/1.1.0."
            )
    if is_remote(folder):
        for entry in folder.iterdir():
            if entry.name.endswith((".json", ".txt")):
                copy = local_copy(entry, refresh=True)
        folder = copy.parent
    _refuse_foreign_classes(folder, location)
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises errors of many types for a damaged description
        raise DataError(
            f"{location} can't be read as a data set of TFDS ({type(error).__name__}: {printable(error)})."
        ) from None
    kind = getattr(builder.info.file_format, "value", None)
    if kind != "array_record":
        raise DataError(
            f"{location} was prepared as {kind}, which needs TensorFlow to be read: prepare it with tfds build "
            "--file_format=array_record."
        )
    features = builder.info.features
    if "image" not in features or "objects" not in features or not {"bbox", "label"} <= set(features["objects"].keys()):
        raise DataError(
            f"{location} has the features {', '.join(features)}: a detection set has image and objects with bbox and "
            "label."
        )
    return builder


def _refuse_foreign_classes(folder: Path, location: str) -> None:
    """Raise DataError if TFDS would import anything but its own features when it opens a folder."""
    import tensorflow_datasets as tfds

    base = tfds.features.FeatureConnector
    classes = [value for value in vars(tfds.features).values() if isinstance(value, type) and issubclass(value, base)]
    allowed = {f"{feature.__module__}.{feature.__name__}" for feature in classes}
    for file in _DESCRIPTIONS:
        try:
            tree = parse_json(read_bytes(folder / file), _MAX_DESCRIPTION_BYTES)
            # Other parts of dataset_info.json have a "type" too, but only "features" names classes.
            tree = tree.get("features") if file == "dataset_info.json" and isinstance(tree, dict) else tree
            foreign = [name for name in _class_names(tree) if name not in allowed]
        except JsonError as error:
            raise DataError(f"{location}/{file} {error}: prepare the set again.") from None
        except OSError as error:
            raise DataError(f"{location}/{file} can't be read ({error.strerror or error}).") from None
        if foreign:
            raise DataError(
                f"{location}/{file} names the class {printable(foreign[0])}, which is not a feature of TensorFlow "
                "Datasets itself and could run any program: nothing of it was imported; prepare the set again without "
                "it."
            )


def _class_names(tree: Any) -> Iterator[str]:
    """Yield the class names in a description, also those in nested JSON strings. Raises JsonError."""
    remaining = [tree]  # not recursive: JSON may be nested more deeply than Python can call
    while remaining:
        value = remaining.pop()
        if isinstance(value, list):
            remaining += value
        for key, inner in value.items() if isinstance(value, dict) else ():
            if isinstance(inner, str) and key in _CLASS_KEYS:
                yield inner
            elif isinstance(inner, str) and key in _TEXT_KEYS:
                remaining.append(parse_json(inner))
            else:
                remaining.append(inner)


def _local_shard(path: Any, location: str) -> Path:
    try:
        copy = local_copy(path)
        copy.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): prepare {location} again.") from None
    return copy


def _fingerprint(folder: Path, shards: list[Path], split: str) -> str:
    """Return a hash of everything that the index depends on; of a shard, its size and modification time."""
    facts: list[Any] = [FORMAT, split, (folder / "dataset_info.json").read_text(encoding="utf-8")]
    facts += [(shard.name, shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _index_files(folder: Path, fingerprint: str) -> Iterator[Path]:
    """Yield the paths where an index may be; the fingerprint in the name prevents that an outdated one is used."""
    yield folder / f".tood_jax_index_{fingerprint[:16]}.json"
    yield cache_folder() / "indices" / f"{fingerprint}.json"


def _read_index(folder: Path, fingerprint: str, count: int) -> dict[str, Any] | None:
    """Return the content of the index of `count` images; None if it does not exist or is damaged."""
    for file in _index_files(folder, fingerprint):
        try:
            index = parse_json(read_regular(file))
        except (OSError, JsonError):
            continue
        tree = index.get("tree") if isinstance(index, dict) and index.get("of") == fingerprint else None
        images = tree.get("images") if isinstance(tree, dict) else None
        if isinstance(images, list) and len(images) == count:
            return tree
    return None


def _write_index(folder: Path, fingerprint: str, tree: dict[str, Any]) -> None:
    """Write the index beside the data or else to the cache; if neither is writable, every run builds it again."""
    data = json.dumps({"of": fingerprint, "tree": tree}).encode()
    for file in _index_files(folder, fingerprint):
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, file)
            return
        except OSError:
            temporary.unlink(missing_ok=True)


def _convert_to_coco(builder: Any, source: Any, location: str) -> dict[str, Any]:
    """Return the content of an instances JSON for all records in their order."""
    names = list(builder.info.features["objects"]["label"].names or ())
    names = names or [str(label) for label in range(builder.info.features["objects"]["label"].num_classes or 0)]
    ids = category_ids(names)

    def convert(position: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        try:
            example = source[position]
        except Exception as error:  # the record is damaged or has other features
            raise DataError(
                f"{location}: record {position} can't be read ({type(error).__name__}: {error}): prepare the set again."
            ) from None
        return _convert_record(example, position, location, ids)

    images, annotations = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        converted = pool.map(convert, range(len(source)))
        for image, objects in tqdm(
            converted, total=len(source), desc=f"index of {location}", disable=None, leave=False
        ):
            images.append(image)
            annotations += objects
    categories = [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _convert_record(
    example: dict[str, Any], position: int, location: str, ids: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an entry of `images` and its entries of `annotations`."""
    name = example.get("image/filename", f"{position}")
    name = name.decode() if isinstance(name, bytes) else str(name)
    image_id = int(example.get("image/id", position + 1))
    height, width = image_size(_EncodedImage(name, f"{location}: {name}", example["image"]))
    image = {"id": image_id, "file_name": name, "height": height, "width": width}
    objects = example["objects"]
    boxes = absolute_boxes(objects["bbox"], height, width).tolist()
    annotations = []
    for i, box in enumerate(boxes):
        label = int(objects["label"][i])
        if not 0 <= label < len(ids):
            raise DataError(
                f"{location}: record {position} ({name}) has label {label}, and there are {len(ids)} classes."
            )
        annotation = {"image_id": image_id, "category_id": ids[label], "bbox": box}
        annotation["iscrowd"] = int(objects["is_crowd"][i]) if "is_crowd" in objects else 0
        annotation["area"] = int(objects["area"][i]) if "area" in objects else None
        annotations.append(annotation)
    return image, annotations


class _EncodedImage:
    """The `ImagePath` of an image in memory."""

    def __init__(self, name: str, location: str, data: bytes):
        self.name, self._location, self._data = name, location, data

    def read_bytes(self) -> bytes:
        return self._data

    def __str__(self) -> str:
        return self._location
