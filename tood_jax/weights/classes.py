"""Find the class of each label for imported weights: PyTorch files have the names of classes, but no category ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tood_jax.data.dataset import ClassInfo
from tood_jax.data.formats.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.untrusted.bounded_json import JsonError, as_integer, as_text, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.weights.mapping import WeightsError

Classes = tuple[ClassInfo, ...]


def find_classes(
    where: str, count: int, names: Sequence[str] | None, stored: Any, annotations: str
) -> tuple[Classes | None, str]:
    """Return (classes by label, their source), or (None, the reason) if they can't be determined.

    Args:
        where: the name of the file of weights, for messages.
        count: number of classes of the classifier.
        names: the names of the classes by label, if the file has them.
        stored: [{"id", "name"}] as this package stores them, or None.
        annotations: path of a COCO instances JSON, which may be missing.
    """
    if stored is not None:
        classes = _parse_classes(stored)
        if classes is None or len(classes) != count:
            return None, f"{where} lists other classes than its {count}"
        return classes, where
    if names is not None and len(names) != count:
        return None, f"{where} names {len(names)} classes, but its classifier has {count}"
    if names is not None and tuple(names) == COCO_NAMES:
        return COCO_CLASSES, f"{where} (COCO's 80)"
    if not Path(annotations).is_file():
        known = "has the names of its classes but not their ids" if names else "does not name its classes"
        return None, f"{where} {known}, and there is no annotation file {annotations or '(empty name)'}"
    classes = read_categories(annotations)
    annotated = tuple(category.name for category in classes)
    if len(classes) != count or (names is not None and tuple(names) != annotated):
        in_file = _join(names) if names else f"{count} classes"
        return None, f"the categories of {annotations} ({_join(annotated)}) are not those of {where} ({in_file})"
    return classes, annotations


def read_categories(annotations: str) -> Classes:
    """Return the categories of a COCO instances JSON in the order of their ids. Raises WeightsError."""
    try:
        raw = parse_json(read_regular(annotations))
    except JsonError as error:
        raise WeightsError(f"{annotations} {error}: name a COCO instances JSON.") from None
    except OSError as error:
        raise WeightsError(f"{annotations} can't be read ({error.strerror or error}).") from None
    classes = _parse_classes(raw.get("categories")) if isinstance(raw, dict) else None
    if classes is None:
        raise WeightsError(f"{annotations} has no list of categories with an id and a name each.")
    return tuple(sorted(classes))


def _parse_classes(raw: Any) -> Classes | None:
    """Return the classes of a list of {"id": 64-bit integer, "name": text}; None for anything else."""
    if not isinstance(raw, list):
        return None
    classes = []
    for entry in raw:
        if not isinstance(entry, dict):
            return None
        id_, name = as_integer(entry.get("id")), as_text(entry.get("name"))
        if id_ is None or name is None:
            return None
        classes.append(ClassInfo(id_, name))
    return tuple(classes)


def _join(names: Sequence[str]) -> str:
    return printable(", ".join(names), 1000)
