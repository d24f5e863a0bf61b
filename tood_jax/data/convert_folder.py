"""Write a folder of annotated images in any layout as COCO files with copies of the images, or as records."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from tqdm import tqdm

from tood_jax.data.dataset import AnnotatedImage, Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.array_record import write_array_record
from tood_jax.data.formats.folder_splits import SPLITS
from tood_jax.data.load_folder import find_layout, load_folder
from tood_jax.data.paths import read_bytes
from tood_jax.files import write_atomically
from tood_jax.untrusted.printable import printable

IMAGES_PER_SHARD = 2000  # about 300 MB of COCO


def convert_folder(folder: str, out: Path, form: Literal["coco", "records"], seed: int = 0) -> Iterator[str]:
    """Write all splits of a folder, and yield a message about each.

    COCO: out/annotations/instances_SPLIT.json and out/SPLIT/NAME; records: out/SPLIT. Boxes, ids and crowds are those
    of the source, `difficult` becomes `ignore`; images keep their bytes and names, with a number where two have the
    same name.

    Args:
        folder: a local folder, read as `--data` does.
        out: a folder that does not exist or is empty; for records also one that an interrupted call began.
        form: what to write.
        seed: folder_seed, for a folder without val.

    Raises:
        DataError: the folder or one of its images can't be read, or `out` holds other files.
        OSError: a file can't be written.
    """
    layout = find_layout(folder)
    if form == "coco" and out.is_dir() and any(out.iterdir()):
        raise DataError(f"{printable(out)} is not empty: name a folder that is empty or does not exist.")
    for split in (name for name in SPLITS if name != "test" or name in layout.splits):
        dataset = load_folder(folder, split, seed)
        names = _unique_names(dataset.images)
        tree = dataset.ground_truth()
        for entry, name in zip(tree["images"], names, strict=True):
            entry["file_name"] = name
        if not dataset.has_annotations:
            del tree["annotations"]
        annotations = json.dumps(tree, allow_nan=False).encode()
        write = _write_records if form == "records" else _write_coco
        where = write(dataset, names, annotations, out, split)
        yield f"{split}: {dataset.report.summary()} Written: {printable(where)}"


def _write_records(dataset: Dataset, names: Sequence[str], annotations: bytes, out: Path, split: str) -> Path:
    images = [(name, image.path) for name, image in zip(names, dataset.images, strict=True)]
    shards = -(-len(images) // IMAGES_PER_SHARD)
    with tqdm(total=len(images), desc=split, unit="image", disable=None, leave=False) as progress:
        write_array_record(annotations, images, out / split, shards, progress.update)
    return out / split


def _write_coco(dataset: Dataset, names: Sequence[str], annotations: bytes, out: Path, split: str) -> Path:
    pairs = list(zip(names, dataset.images, strict=True))
    for name, image in tqdm(pairs, desc=split, unit="image", disable=None, leave=False):
        try:
            data = read_bytes(image.path)
        except OSError as error:
            raise DataError(
                f"{printable(image.path)} can't be read ({error.strerror or error}): restore the file or remove it "
                "from the annotations."
            ) from None
        write_atomically(out / split / name, data)
    file = out / "annotations" / f"instances_{split}.json"
    write_atomically(file, annotations)  # last, so that a complete file has all its images
    return file


def _unique_names(images: Sequence[AnnotatedImage]) -> list[str]:
    """Return the names of the files without folders; _2, _3, … is added to a name that is taken."""
    taken: set[str] = set()
    names = []
    for image in images:
        name = path = PurePosixPath(image.path.name)
        number = 1
        while str(name).casefold() in taken:
            number += 1
            name = path.with_stem(f"{path.stem}_{number}")
        taken.add(str(name).casefold())
        names.append(str(name))
    return names
