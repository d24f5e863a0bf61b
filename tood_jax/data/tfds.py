"""Data sets that TensorFlow Datasets prepared as ArrayRecord, such as coco/2017, read without TensorFlow.

    tfds build coco/2017 --file_format=array_record      # once, in an environment of its own, for it needs TensorFlow

Their records know neither the image's size nor COCO's category ids, and boxes are shares of the image in float32. One
pass over all records makes an instances tree of them, which `coco.py` then reads like any other; it is kept in an
index file beside the data (or in the cache, where that can't be written) and made again when the data changed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tood_jax.data.coco import CocoSet, parse_coco
from tood_jax.data.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.data.decode import image_size
from tood_jax.data.errors import DataError
from tood_jax.data.paths import as_path, cache_folder, is_file, is_folder, is_remote, local_copy
from tood_jax.data.records import RecordPath

FORMAT = 1  # of the index file
_THREADS = 4  # that read records while the index is made


class TfdsReader:
    """Encoded images of a split by position.

    Args:
        source: of `builder.as_data_source`, its images not decoded.
    """

    def __init__(self, source: Any):
        self._source = source

    def image(self, position: int, name: str) -> bytes:
        data: bytes = self._source[position]["image"]
        return data


def load_tfds(place: str, split: str) -> CocoSet:
    """Read a split of a prepared data set; in an object store, its shards are first copied to this machine, once.

    Raises DataError, in one sentence, for whatever can't be used.
    """
    builder = _builder(as_path(place), place)
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError):
        known = ", ".join(builder.info.splits) or "none"
        raise DataError(f"{place} has no split {split!r}: set data.*.tfds_split to one of {known}.") from None
    folder = as_path(place)
    shards = [_shard(folder / os.path.basename(part.filename), place) for part in parts]
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    reader = TfdsReader(source)
    fingerprint = _fingerprint(Path(builder.data_dir), shards, split)
    tree = _kept_index(Path(builder.data_dir), fingerprint)
    if tree is None:
        tree = _make_tree(builder, source, reader, place)
        _keep_index(Path(builder.data_dir), fingerprint, tree)
    name = f"{place} ({split})"
    return parse_coco(tree, name, lambda position, file: RecordPath(reader, position, file, name))


def category_ids(names: Sequence[str]) -> list[int]:
    """COCO's ids for COCO's eighty names; 1, 2, … for any others."""
    if tuple(names) == COCO_NAMES:
        return [one.id for one in COCO_CLASSES]
    return list(range(1, len(names) + 1))


def absolute_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shares of the image [n, 4] (ymin, xmin, ymax, xmax), rounded to float32, as [n, 4] xywh in pixels, float64.

    COCO's boxes are hundredths of a pixel. Where float32 leaves it open whether an edge is one, it is taken as one:
    so COCO's numbers come back exactly, and any others as exactly as float32 holds them.
    """
    shares = np.asarray(boxes, np.float32).astype(np.float64).reshape(-1, 4)
    size = np.array([height, width, height, width], np.float64)
    edges = shares * size
    hundredths = np.round(edges, 2)
    is_hundredth = np.abs(edges - hundredths) <= size * 2.0**-24  # float32's last place below 1
    edges = np.where(is_hundredth, hundredths, edges)
    sides = edges[:, 2:] - edges[:, :2]  # (height, width)
    sides = np.where(is_hundredth[:, :2] & is_hundredth[:, 2:], np.round(sides, 2), sides)
    return np.stack([edges[:, 1], edges[:, 0], sides[:, 1], sides[:, 0]], axis=1)


def _builder(folder: Any, place: str) -> Any:
    """The builder of a prepared folder, local copies of its descriptions made where it lies in an object store."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"data.*.tfds = {place} needs TensorFlow Datasets (not TensorFlow), which isn't installed ({error}): "
            "pip install 'tood_jax[tfds]'."
        ) from None
    for file in ("dataset_info.json", "features.json"):
        if not is_file(folder / file):
            why = "holds no such file" if is_folder(folder) else "doesn't exist"
            raise DataError(
                f"There is no {file} in data.*.tfds = {place}, which {why}: name the folder of the data set's version, "
                "such as …/coco/2017/1.1.0."
            )
    if is_remote(folder):
        for one in folder.iterdir():
            if one.name.endswith((".json", ".txt")):
                copy = local_copy(one, again=True)
        folder = copy.parent
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever TFDS makes of a damaged description
        raise DataError(f"{place} can't be read as a data set of TFDS ({type(error).__name__}: {error}).") from None
    kind = getattr(builder.info.file_format, "value", None)
    if kind != "array_record":
        raise DataError(
            f"{place} was prepared as {kind}, which needs TensorFlow to be read: prepare it with tfds build "
            "--file_format=array_record."
        )
    features = builder.info.features
    if "image" not in features or "objects" not in features or not {"bbox", "label"} <= set(features["objects"].keys()):
        raise DataError(
            f"{place} has the features {', '.join(features)}: a detection set has image and objects with bbox and "
            "label."
        )
    return builder


def _shard(path: Any, place: str) -> Path:
    try:
        copy = local_copy(path)
        copy.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}): prepare {place} anew.") from None
    return copy


def _fingerprint(folder: Path, shards: list[Path], split: str) -> str:
    """Of everything that the index depends on; a shard is known by its size and time."""
    told: list[Any] = [FORMAT, split, (folder / "dataset_info.json").read_text(encoding="utf-8")]
    told += [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in shards]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _index_files(folder: Path, fingerprint: str) -> Iterator[Path]:
    """Where an index may lie; one fingerprint a name, so that an old one is never taken."""
    yield folder / f".tood_jax_index_{fingerprint[:16]}.json"
    yield cache_folder() / "indices" / f"{fingerprint}.json"


def _kept_index(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    for file in _index_files(folder, fingerprint):
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("of") == fingerprint and isinstance(found.get("tree"), dict):
            return found["tree"]
    return None


def _keep_index(folder: Path, fingerprint: str, tree: dict[str, Any]) -> None:
    """Beside the data or else in the cache; a run that can keep it nowhere makes it anew each time."""
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


def _make_tree(builder: Any, source: Any, reader: TfdsReader, place: str) -> dict[str, Any]:
    """An instances tree of all records, in their order."""
    names = list(builder.info.features["objects"]["label"].names or ())
    names = names or [str(label) for label in range(builder.info.features["objects"]["label"].num_classes or 0)]
    ids = category_ids(names)

    def look(position: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        try:
            example = source[position]
        except Exception as error:  # of the record's hash, or of its form
            raise DataError(
                f"{place}: record {position} can't be read ({type(error).__name__}: {error}): prepare the set anew."
            ) from None
        return _entry(example, position, place, ids)

    images, annotations = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(look, range(len(source)))
        for image, own in tqdm(found, total=len(source), desc=f"index of {place}", disable=None, leave=False):
            images.append(image)
            annotations += own
    categories = [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _entry(
    example: dict[str, Any], position: int, place: str, ids: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image of the tree and its annotations."""
    name = example.get("image/filename", f"{position}")
    name = name.decode() if isinstance(name, bytes) else str(name)
    image_id = int(example.get("image/id", position + 1))
    height, width = image_size(_Encoded(name, f"{place}: {name}", example["image"]))
    image = {"id": image_id, "file_name": name, "height": height, "width": width}
    objects = example["objects"]
    boxes = absolute_boxes(objects["bbox"], height, width).tolist()
    annotations = []
    for i, box in enumerate(boxes):
        label = int(objects["label"][i])
        if not 0 <= label < len(ids):
            raise DataError(f"{place}: record {position} ({name}) has label {label}, and there are {len(ids)} classes.")
        one = {"image_id": image_id, "category_id": ids[label], "bbox": box}
        one["iscrowd"] = int(objects["is_crowd"][i]) if "is_crowd" in objects else 0
        one["area"] = int(objects["area"][i]) if "area" in objects else None
        annotations.append(one)
    return image, annotations


class _Encoded:
    """An image in memory, as a path."""

    def __init__(self, name: str, place: str, data: bytes):
        self.name, self._place, self._data = name, place, data

    def read_bytes(self) -> bytes:
        return self._data

    def __str__(self) -> str:
        return self._place
