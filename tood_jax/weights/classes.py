"""Whose class each label is, for weights from elsewhere: PyTorch files name the classes, but not the category ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tood_jax.data.coco import ClassInfo
from tood_jax.data.coco_classes import COCO_CLASSES, COCO_NAMES
from tood_jax.weights.mapping import WeightsError

Classes = tuple[ClassInfo, ...]


def find_classes(
    where: str, count: int, names: Sequence[str] | None, stored: Any, annotations: str
) -> tuple[Classes | None, str]:
    """(classes by label, where they are from); (None, why) if that can't be known.

    Args:
        where: the file of the weights, for messages.
        count: classes of the classifier.
        names: the classes' names by label, if the file has them.
        stored: [{"id", "name"}] as this package stores them, or None.
        annotations: a COCO instances JSON; it need not exist.
    """
    if stored is not None:
        classes = _stored(stored)
        if classes is None or len(classes) != count:
            return None, f"{where} lists other classes than its {count}"
        return classes, where
    if names is not None and len(names) != count:
        return None, f"{where} names {len(names)} classes, but its classifier has {count}"
    if names is not None and tuple(names) == COCO_NAMES:
        return COCO_CLASSES, f"{where} (COCO's 80)"
    if not Path(annotations).is_file():
        known = "names its classes but not their ids" if names else "doesn't say which its classes are"
        return None, f"{where} {known}, and there is no annotation file {annotations or '(empty name)'}"
    classes = read_categories(annotations)
    ours = tuple(one.name for one in classes)
    if len(classes) != count or (names is not None and tuple(names) != ours):
        theirs = ", ".join(names) if names else f"{count} classes"
        return None, f"the categories of {annotations} ({', '.join(ours)}) are not those of {where} ({theirs})"
    return classes, annotations


def read_categories(annotations: str) -> Classes:
    """The categories of a COCO instances JSON in the order of their ids. Raises WeightsError."""
    try:
        raw = json.loads(Path(annotations).read_bytes())["categories"]
        classes = _stored(raw)
    except (OSError, ValueError, KeyError, TypeError):
        classes = None
    if classes is None:
        raise WeightsError(f"{annotations} has no list of categories with an id and a name each.")
    return tuple(sorted(classes))


def _stored(raw: Any) -> Classes | None:
    whole = isinstance(raw, list) and all(
        isinstance(one, dict) and type(one.get("id")) is int and isinstance(one.get("name"), str) for one in raw
    )
    return tuple(ClassInfo(one["id"], one["name"]) for one in raw) if whole else None
