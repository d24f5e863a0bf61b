"""Check a folder of annotated images: what is wrong with it, and what its objects are like.

Every image is decoded once. Errors make images or a split unusable; warnings cost accuracy or make a score misleading.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from tood_jax.config import DataConfig
from tood_jax.data.dataset import AnnotatedImage, Dataset, class_names
from tood_jax.data.errors import DataError
from tood_jax.data.formats.folder_splits import SPLITS
from tood_jax.data.formats.yolo import UNREADABLE
from tood_jax.data.image_headers import read_header
from tood_jax.data.image_io import decode_image
from tood_jax.data.load_folder import find_layout, load_folder
from tood_jax.data.paths import read_bytes
from tood_jax.data.transforms import resized_size
from tood_jax.untrusted.printable import printable

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
SIZE_LIMITS = (8, 16, 32, 64, 128, 256)  # pixels after resizing: the strides of P3–P7, and above
_MAX_EXAMPLES = 5
_SMALL_SHARE = 0.05  # of objects below the smallest stride
_IMBALANCE = 50  # most frequent class / rarest
_USUAL = (  # what a loader counts and what is no fault
    "boxes marked", "category ids taken", "crowd boxes", "image sizes read", "images without objects", "missing 'area'",
    "missing 'iscrowd'", "segments taken", "data sets with boxes that begin",
)  # fmt: skip
_FOUND_BY_DECODING = ("images missing in the folder", UNREADABLE)


class Finding(NamedTuple):
    """One kind of problem in one split."""

    level: Level
    split: str
    number: int  # of cases
    what: str  # follows the number
    examples: tuple[str, ...] = ()  # all cases, or the first few

    def named(self, at_most: int) -> str:
        """Return the first examples in one text."""
        shown = ", ".join(printable(name, 200) for name in self.examples[:at_most])
        return shown + (", …" if shown and self.number > min(at_most, len(self.examples)) else "")

    def __str__(self) -> str:
        examples = f" ({self.named(_MAX_EXAMPLES)})" if self.examples else ""
        return f"{self.level}: {self.split}: {self.number:,} {self.what}{examples}"


class ImageCheck(NamedTuple):
    """What the file of one image is like."""

    digest: bytes  # of its content; b"" if it can't be read
    problem: str = ""  # why it can't be used
    is_turned: bool = False  # EXIF exchanges its sides
    is_unturned: bool = False  # its annotations are for the image without EXIF orientation
    noticed: tuple[str, ...] = ()  # of `decode_image`


@dataclass
class Health:
    """The result of `inspect`."""

    folder: str
    layout: str = ""
    datasets: dict[str, Dataset] = field(default_factory=dict)  # by split
    findings: list[Finding] = field(default_factory=list)

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def sorted_findings(self) -> list[Finding]:
        """Return the findings, errors first."""
        return sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))


def inspect(folder: str, data: DataConfig, seed: int = 0) -> Health:
    """Read a folder as `--data` does, and check annotations and image files.

    Args:
        folder: a local folder.
        data: sizes and limits to compare the objects with.
        seed: folder_seed, for a folder without val.

    Raises:
        DataError: the layout is not recognized.
    """
    layout = find_layout(folder)
    health = Health(folder, layout.name)
    checks: dict[str, list[ImageCheck]] = {}
    for split in SPLITS:
        if split == "test" and split not in layout.splits:
            continue
        try:
            dataset = load_folder(folder, split, seed, "skip")
        except DataError as error:
            health.findings.append(Finding("error", split, 1, f"reason not to use it: {printable(error, 1000)}"))
            continue
        health.datasets[split] = dataset
        health.findings += _loader_findings(split, dataset)
        checks[split] = _check_images(dataset, split)
        health.findings += _image_findings(split, dataset, checks[split])
        health.findings += _object_findings(split, dataset, data)
    health.findings += _findings_across(health.datasets, checks)
    return health


def object_sides(dataset: Dataset, data: DataConfig) -> np.ndarray:
    """Return the square root of the area of each training box, in pixels after resizing for evaluation, [n]."""
    parts = [np.zeros(0)]
    for image in dataset.images:
        height, _ = resized_size(image.height, image.width, data.eval_short_side, data.max_long_side)
        sides = (image.boxes[:, 2:] - image.boxes[:, :2]).astype(np.float64)
        parts.append(np.sqrt(sides.prod(axis=1)) * (height / image.height))
    return np.concatenate(parts)


def size_counts(dataset: Dataset, data: DataConfig) -> list[int]:
    """Return the number of objects below each of SIZE_LIMITS (and above the former), and of those above all."""
    return np.bincount(np.digitize(object_sides(dataset, data), SIZE_LIMITS), minlength=len(SIZE_LIMITS) + 1).tolist()


def class_counts(dataset: Dataset) -> list[int]:
    """Return the number of training boxes of each class."""
    labels = [image.labels for image in dataset.images]
    return np.bincount(np.concatenate([np.zeros(0, int), *labels]), minlength=len(dataset.classes)).tolist()


def _loader_findings(split: str, dataset: Dataset) -> Iterator[Finding]:
    report = dataset.report
    for what, count in report.counts.items():
        if what in _FOUND_BY_DECODING:
            continue
        is_usual = what.startswith(_USUAL) or (what == "classes without objects" and split != "train")
        level: Level = "note" if is_usual else "warning"
        yield Finding(level, split, count, what, tuple(report.examples[what]))
    if report.hint:
        yield Finding("note", split, len(dataset.images), f"images: {report.hint}")
    if not report.objects:
        yield Finding("error", split, 0, "usable boxes: nothing can be learned from it or evaluated on it")


def _check_images(dataset: Dataset, split: str) -> list[ImageCheck]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checks = pool.map(_check_image, dataset.images)
        return list(tqdm(checks, total=len(dataset.images), desc=f"images of {split}", disable=None, leave=False))


def _check_image(image: AnnotatedImage) -> ImageCheck:
    noticed: list[str] = []
    try:
        found = decode_image(image.path, noticed=noticed).shape[:2]
        data = read_bytes(image.path)
    except (DataError, OSError) as error:
        return ImageCheck(b"", _reason(error, image))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    header = read_header(data)
    is_turned = found[0] != found[1] and (header.width, header.height) == found
    if found == (image.height, image.width):
        return ImageCheck(digest, is_turned=is_turned, noticed=tuple(noticed))
    if is_turned and found == (image.width, image.height):
        return ImageCheck(digest, is_unturned=True, noticed=tuple(noticed))
    size = f"is {found[1]}×{found[0]} pixels, annotated for {image.width}×{image.height}"
    return ImageCheck(digest, size)


def _reason(error: Exception, image: AnnotatedImage) -> str:
    """Return what an error says about an image, without its path and the remedy."""
    return str(error).partition(str(image.path))[2].partition(":")[0].strip() or str(error)


def _image_findings(split: str, dataset: Dataset, checks: Sequence[ImageCheck]) -> Iterator[Finding]:
    named = list(zip([image.path.name for image in dataset.images], checks, strict=True))
    unreadable = [f"{name} {check.problem}" for name, check in named if check.problem and not check.digest]
    wrong = [f"{name} {check.problem}" for name, check in named if check.problem and check.digest]
    yield from _listed("error", split, "images that can't be read", unreadable)
    yield from _listed("error", split, "images of another size than their annotations", wrong)
    yield from _listed("note", split, "images turned by EXIF orientation", [n for n, check in named if check.is_turned])
    unturned = [name for name, check in named if check.is_unturned]
    yield from _listed("note", split, "images annotated without their EXIF orientation, which is ignored", unturned)
    for what in sorted({what for check in checks for what in check.noticed}):
        yield from _listed("note", split, what, [name for name, check in named if what in check.noticed])
    groups = _identical(named)
    yield from _listed("warning", split, "groups of identical images", [" = ".join(group) for group in groups])


def _identical(named: Sequence[tuple[str, ImageCheck]]) -> list[list[str]]:
    groups: dict[bytes, list[str]] = {}
    for name, check in named:
        if check.digest:
            groups.setdefault(check.digest, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _object_findings(split: str, dataset: Dataset, data: DataConfig) -> Iterator[Finding]:
    images = dataset.images
    tiny = [image.path.name for image in images if image.is_tiny is not None for _ in range(int(image.is_tiny.sum()))]
    yield from _listed("warning", split, "boxes with a side below 1 pixel", tiny)
    twice = [image.path.name for image in images for _ in range(_repeated(image))]
    yield from _listed("warning", split, "boxes listed twice with the same class", twice)
    crowded = [f"{image.path.name}: {len(image.labels)}" for image in images if len(image.labels) > data.max_objects]
    what = f"images with more objects than data.max_objects={data.max_objects}, of which the largest are kept: raise it"
    yield from _listed("warning", split, what, crowded)
    sides = object_sides(dataset, data)
    small = int((sides < SIZE_LIMITS[0]).sum())
    if small > _SMALL_SHARE * len(sides):
        what = (
            f"of {len(sides):,} objects are smaller than the smallest stride ({SIZE_LIMITS[0]} pixels) at "
            f"data.eval_short_side={data.eval_short_side}: use larger images (data.train_short_side, "
            "data.eval_short_side, data.max_long_side, data.buckets)"
        )
        yield Finding("warning", split, small, what)
    all_counts = zip(class_names(dataset.classes), class_counts(dataset), strict=True)
    counts = {name: count for name, count in all_counts if count}
    if split == "train" and counts and max(counts.values()) > _IMBALANCE * min(counts.values()):
        most = max(counts, key=counts.__getitem__)
        rare = sorted((count, name) for name, count in counts.items() if counts[most] > _IMBALANCE * count)
        what = f"classes are more than {_IMBALANCE} times as rare as {printable(most, 60)} ({counts[most]:,} objects)"
        yield from _listed("warning", split, what, [f"{name}: {count}" for count, name in rare])


def _repeated(image: AnnotatedImage) -> int:
    rows = [(label, *box) for label, box in zip(image.labels.tolist(), image.boxes.tolist(), strict=True)]
    return len(rows) - len(set(rows))


def _findings_across(datasets: Mapping[str, Dataset], checks: Mapping[str, Sequence[ImageCheck]]) -> Iterator[Finding]:
    names = list(datasets)
    for position, first in enumerate(names):
        by_digest = {check.digest: image for image, check in zip(datasets[first].images, checks[first], strict=True)}
        by_digest.pop(b"", None)
        for second in names[position + 1 :]:
            pairs = [
                f"{by_digest[check.digest].path.name} = {image.path.name}"
                for image, check in zip(datasets[second].images, checks[second], strict=True)
                if check.digest in by_digest
            ]
            what = f"images that {first} has too, so that scores are too high"
            yield from _listed("warning", second, what, pairs)
            if datasets[first].classes != datasets[second].classes:
                what = f"other list of categories than {first}: both need the same names with the same ids"
                yield Finding("error", second, 1, what, _class_differences(datasets[first], datasets[second]))


def _class_differences(first: Dataset, second: Dataset) -> tuple[str, ...]:
    difference = Counter(first.classes)
    difference.subtract(Counter(second.classes))
    return tuple(f"{info.id} {info.name}" for info, count in difference.items() if count)


def _listed(level: Level, split: str, what: str, names: Sequence[str]) -> Iterator[Finding]:
    if names:
        yield Finding(level, split, len(names), what, tuple(names))
