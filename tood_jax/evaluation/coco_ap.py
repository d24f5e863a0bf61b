"""COCO average precision of boxes, on the host: from detections to COCO results, and to COCO's twelve metrics and AP90.

    results = coco_results(zip(*detections[:3]), image_ids, category_ids)  # `Detections` of a batch
    metrics = evaluate(ground_truth, results)
    print(format_table(metrics, class_names))

Boxes are xyxy in pixels of the original image; COCO files have (x, y, width, height). Crowd regions are ignored as in
COCO: a detection inside one is neither right nor wrong. `iscrowd` (default 0) and `area` (default: the area of the box)
may be missing. hotcoco (extra `report`) is used if it is installed: the same numbers, a hundred times faster. Both
engines receive images and categories numbered 1, 2, … in the order of their ids, because one reads unsigned 64-bit ids
as floats and the other accepts only integers.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tood_jax.files import write_atomically
from tood_jax.untrusted.printable import printable

Engine = Literal["auto", "pycocotools", "hotcoco"]
Interval = tuple[float, float]  # lowest and highest plausible value, 0–1
HAS_HOTCOCO = importlib.util.find_spec("hotcoco") is not None
SIZES = ("all", "small", "medium", "large")  # the order of COCO's area ranges
_MAX_NAME_LENGTH = 60  # characters of a class name in a table
MAX_DETECTIONS = (1, 10, 100)  # per image


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve metrics and AP90, 0–1; NaN where there are no objects, for example no small ones."""

    AP: float
    """Average precision, the mean over classes and IoU thresholds 0.50, 0.55, …, 0.95."""
    AP50: float
    AP75: float
    AP90: float
    """AP at an IoU of 0.90, which shows how well boxes are placed; not one of COCO's."""
    APs: float
    """AP of objects with an area below 32² pixels."""
    APm: float
    APl: float
    """AP of objects with an area of at least 96² pixels."""
    AR1: float
    """Average recall with one detection per image."""
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    class_ap: tuple[float, ...]
    """AP of each class, in the order of the category ids; NaN for a class without objects."""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics for JSON, with None in place of NaN."""
        numbers = {name: _none_for_nan(value) for name, value in self.numbers().items()}
        return numbers | {"class_ap": [_none_for_nan(value) for value in self.class_ap]}

    def numbers(self) -> dict[str, float]:
        """Return all metrics except those of single classes, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "class_ap"}


def coco_results(
    detections: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    image_ids: Sequence[int | float | str],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Return detections as a list of COCO results.

    Args:
        detections: for each image, boxes [K, 4] xyxy in pixels of the original image, scores [K] 0–1 and labels [K]
            0…C-1; rows with label -1 are padding.
        image_ids: COCO's id of each image.
        category_ids: COCO's id of each label, [C].

    Raises:
        ValueError: the lengths differ, or a box or score is not finite.
    """
    results = []
    for (boxes, scores, labels), image_id in zip(detections, image_ids, strict=True):
        boxes, scores, labels = np.asarray(boxes, float), np.asarray(scores, float), np.asarray(labels)
        if not len(boxes) == len(scores) == len(labels):
            raise ValueError(f"Image {image_id}: {len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels.")
        boxes, scores, labels = boxes[labels >= 0], scores[labels >= 0], labels[labels >= 0]
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"Image {image_id} has a detection whose box or score isn't a finite number.")
        for (x0, y0, x1, y1), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            result = {
                "image_id": image_id.item() if isinstance(image_id, np.generic) else image_id,
                "category_id": int(category_ids[label]),
            }
            results.append(result | {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score})
    return results


def write_results(results: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write COCO results as JSON, as COCO's server takes them; the file appears whole or not at all."""
    write_atomically(path, json.dumps(results).encode())


def evaluate(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    engine: Engine = "auto",
) -> CocoMetrics:
    """Return the metrics of COCO results for a COCO instances file, without printing.

    Args:
        ground_truth: `images`, `categories` and `annotations` of an instances JSON; not modified.
        results: as `coco_results` returns them; may be empty.
        engine: "auto" uses hotcoco if it is installed.

    Raises:
        ValueError: a result has an image or category that `ground_truth` does not have.
    """
    truth, found = numbered(ground_truth, results)
    if not truth["images"] or not truth["categories"]:
        classes = len(truth["categories"])
        return _summary(np.full((10, 101, classes, 4, 3), -1.0), np.full((10, classes, 4, 3), -1.0))
    return read_metrics(run_engine(truth, found, HAS_HOTCOCO if engine == "auto" else engine == "hotcoco"))


def numbered(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ground truth and detections as two COCO dictionaries that any engine reads.

    Images, categories and annotations are numbered 1, 2, …: images and categories in the order of their ids,
    annotations in the order of their lists, without those of images or categories that are not listed.

    Raises:
        ValueError: as `evaluate`.
    """
    images = number_ids(image["id"] for image in ground_truth["images"])
    categories = number_ids(category["id"] for category in ground_truth["categories"])
    for result in results:
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise ValueError(
                f"A result is of image {result['image_id']} and category {result['category_id']}, "
                f"which the ground truth doesn't have."
            )

    def renumber(number: int, source: Mapping[str, Any]) -> dict[str, Any]:
        image, category = images.get(source["image_id"]), categories.get(source["category_id"])
        return _annotation(number, source) | {"image_id": image, "category_id": category}

    lists = {
        "images": [{"id": i} for i in images.values()],
        "categories": [{"id": i, "name": str(i)} for i in categories.values()],
    }
    found = [
        renumber(i, {**result, "area": None, "iscrowd": 0}) | {"score": result["score"]}
        for i, result in enumerate(results, 1)
    ]
    truth = [
        renumber(i, annotation)
        for i, annotation in enumerate(ground_truth.get("annotations", ()), 1)
        if annotation["image_id"] in images and annotation["category_id"] in categories
    ]
    return lists | {"annotations": truth}, lists | {"annotations": found}


def number_ids(ids: Iterable[Any]) -> dict[Any, int]:
    """Return 1, 2, … by id, in the order of the ids: the engines break ties of scores by the order of the images."""
    ordered = sorted(set(ids), key=lambda id_: (isinstance(id_, str), id_))
    return {id_: number for number, id_ in enumerate(ordered, 1)}


def format_table(
    metrics: CocoMetrics,
    class_names: Sequence[str],
    intervals: tuple[Mapping[str, Interval], Sequence[Interval]] | None = None,
) -> str:
    """Return the metrics and the AP of each class in percent, as lines of plain text; `n/a` for NaN.

    Args:
        metrics: the numbers.
        class_names: [C].
        intervals: bounds of metrics by name, and of the AP of each class.
    """
    numbers = metrics.numbers()
    names = list(numbers)
    lines = []
    for row in (names[:7], names[7:]):
        lines.append("".join(f"{name:>8}" for name in row))
        lines.append("".join(f"{_percent(numbers[name]):>8}" for name in row))
    of_classes: Sequence[Interval | None] = [None] * len(class_names)
    if intervals is not None:
        of_metrics, of_classes = intervals
        texts = (f"{name} {format_ap(numbers[name], bounds)}" for name, bounds in of_metrics.items())
        lines += ["", f"95 % intervals: {', '.join(texts)}"]
    shown = [printable(name, _MAX_NAME_LENGTH) for name in class_names]
    width = max([len(name) for name in shown], default=0)
    lines.append("")
    for name, value, bounds in zip(shown, metrics.class_ap, of_classes, strict=True):
        lines.append(f"  {name:<{width}}  {_percent(value):>6}{_bounds(value, bounds)}")
    return "\n".join(lines)


def format_ap(value: float, bounds: Interval | None) -> str:
    """Return AP in percent with its interval: "57.6 [55.9, 59.2]"; "n/a" for NaN."""
    return f"{_percent(value)}{_bounds(value, bounds)}"


def _bounds(value: float, bounds: Interval | None) -> str:
    return "" if bounds is None or math.isnan(value) else f" [{_percent(bounds[0])}, {_percent(bounds[1])}]"


def _annotation(number: int, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that COCO's evaluation reads, with a new id, because it never finds an object with id 0."""
    x, y, width, height = source["bbox"]
    return {
        "id": number,
        "bbox": [x, y, width, height],
        "area": width * height if source.get("area") is None else source["area"],
        "iscrowd": int(source.get("iscrowd") or 0),
    }


def run_engine(truth: dict[str, Any], found: dict[str, Any], use_hotcoco: bool = True) -> Any:
    """Return a COCOeval that has matched the detections, of two dictionaries of `numbered`."""
    if use_hotcoco:
        import hotcoco

        evaluation = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), "bbox")
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        def indexed(dataset: dict[str, Any]) -> Any:
            coco = COCO()
            coco.dataset = dataset
            with contextlib.redirect_stdout(io.StringIO()):
                coco.createIndex()
            return coco

        evaluation = COCOeval(indexed(truth), indexed(found), "bbox")
    evaluation.params.maxDets = list(MAX_DETECTIONS)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return evaluation


def read_metrics(engine: Any) -> CocoMetrics:
    """Return the metrics of what `run_engine` returned."""
    with contextlib.redirect_stdout(io.StringIO()):
        engine.accumulate()
    return _summary(engine.eval["precision"], engine.eval["recall"])


def _summary(precision: np.ndarray, recall: np.ndarray) -> CocoMetrics:
    """Return the means of the defined values; the engines mark undefined ones with -1.

    Args:
        precision: [T, R, C, A, M]: T IoU thresholds, R recalls, C classes, A object sizes, M MAX_DETECTIONS.
        recall: [T, C, A, M].
    """

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else math.nan

    best = precision[..., -1]  # [T, R, C, A] with the most detections
    by_size = {size: mean(best[..., i]) for i, size in enumerate(SIZES)}
    recall_by_size = {size: mean(recall[:, :, i, -1]) for i, size in enumerate(SIZES)}
    return CocoMetrics(
        AP=by_size["all"],
        AP50=mean(best[0, ..., 0]),
        AP75=mean(best[5, ..., 0]),
        AP90=mean(best[8, ..., 0]),
        APs=by_size["small"],
        APm=by_size["medium"],
        APl=by_size["large"],
        AR1=mean(recall[:, :, 0, 0]),
        AR10=mean(recall[:, :, 0, 1]),
        AR100=recall_by_size["all"],
        ARs=recall_by_size["small"],
        ARm=recall_by_size["medium"],
        ARl=recall_by_size["large"],
        class_ap=tuple(mean(best[:, :, c, 0]) for c in range(best.shape[2])),
    )


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
