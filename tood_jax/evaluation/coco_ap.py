"""COCO average precision of boxes, on the host: detections to COCO results, results to the twelve numbers.

    results = coco_results(zip(*detections), image_ids, category_ids)  # `Detections`, a batch at a time
    metrics = evaluate(ground_truth, results)
    print(format_table(metrics, class_names))

Boxes are xyxy in pixels of the original image; COCO's files hold (x, y, width, height). Crowd regions are ignored as
COCO does: a detection inside one is neither right nor wrong. `iscrowd` (taken as 0) and `area` (taken as that of the
box) may be missing. faster-coco-eval is used where it is installed: same numbers, many times faster.
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
from pathlib import Path
from typing import Any, Literal

import numpy as np

Engine = Literal["auto", "pycocotools", "faster_coco_eval"]
HAS_FASTER = importlib.util.find_spec("faster_coco_eval") is not None
SIZES = ("all", "small", "medium", "large")  # the order of COCO's area ranges
MAX_DETECTIONS = (1, 10, 100)  # an image


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve numbers and AP90, 0–1; NaN where there is nothing to find, such as no small object at all."""

    AP: float
    """Mean over the classes and the IoU thresholds 0.50, 0.55, …, 0.95."""
    AP50: float
    AP75: float
    AP90: float
    """Not one of COCO's: AP at an IoU of 0.90, where well-placed boxes show."""
    APs: float
    """Of objects under 32² pixels of area."""
    APm: float
    APl: float
    """Of objects of 96² pixels and more."""
    AR1: float
    """Recall, averaged like AP, with one detection an image."""
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    class_ap: tuple[float, ...]
    """AP a class, in the order of the category ids; NaN for a class without objects."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        numbers = {name: _none_for_nan(value) for name, value in self.numbers().items()}
        return numbers | {"class_ap": [_none_for_nan(value) for value in self.class_ap]}

    def numbers(self) -> dict[str, float]:
        """All but the classes', by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "class_ap"}


def coco_results(
    detections: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    image_ids: Sequence[int | str],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Detections as COCO's list of results.

    Args:
        detections: for each image boxes [K, 4] xyxy in pixels of the original image, scores [K] 0–1 and labels [K]
            0…C-1; rows with label -1 are padding.
        image_ids: COCO's id of each image.
        category_ids: COCO's id of each label, [C].

    Raises ValueError if the lengths differ or a box or score isn't finite.
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
                "image_id": image_id if isinstance(image_id, str) else int(image_id),
                "category_id": int(category_ids[label]),
            }
            results.append(result | {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score})
    return results


def write_results(results: list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write COCO results as JSON, as COCO's server takes them; the folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results), encoding="utf-8")


def evaluate(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    engine: Engine = "auto",
) -> CocoMetrics:
    """The twelve numbers of COCO results against a COCO instances file; silent.

    Args:
        ground_truth: `images`, `categories` and `annotations` of an instances JSON; left as it is.
        results: as `coco_results` makes them; may be empty.
        engine: "auto" takes faster-coco-eval if it is installed.

    Raises ValueError for a result of an image or category that `ground_truth` doesn't have.
    """
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for result in results:
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise ValueError(
                f"A result is of image {result['image_id']} and category {result['category_id']}, "
                f"which the ground truth doesn't have."
            )
    if not images or not categories:
        return _summary(np.full((10, 101, len(categories), 4, 3), -1.0), np.full((10, len(categories), 4, 3), -1.0))
    truth = {"images": list(ground_truth["images"]), "categories": list(ground_truth["categories"])}
    found = truth | {"annotations": [_annotation(i, r) | {"score": r["score"]} for i, r in enumerate(results, 1)]}
    truth["annotations"] = [_annotation(i, a) for i, a in enumerate(ground_truth.get("annotations", ()), 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        arrays = _run_engine(truth, found, HAS_FASTER if engine == "auto" else engine == "faster_coco_eval")
    return _summary(*arrays)


def format_table(metrics: CocoMetrics, class_names: Sequence[str]) -> str:
    """All numbers and the AP of each class in percent, as lines of plain text; `n/a` for what doesn't exist."""
    numbers = metrics.numbers()
    names = list(numbers)
    lines = []
    for row in (names[:7], names[7:]):
        lines.append("".join(f"{name:>8}" for name in row))
        lines.append("".join(f"{_percent(numbers[name]):>8}" for name in row))
    width = max([len(name) for name in class_names], default=0)
    lines.append("")
    for name, value in zip(class_names, metrics.class_ap, strict=True):
        lines.append(f"  {name:<{width}}  {_percent(value):>6}")
    return "\n".join(lines)


def _annotation(number: int, source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields COCO's evaluation reads. Ids are given anew, for it takes an object with id 0 as never found."""
    x, y, width, height = source["bbox"]
    return {
        "id": number,
        "image_id": source["image_id"],
        "category_id": source["category_id"],
        "bbox": [x, y, width, height],
        "area": width * height if source.get("area") is None else source["area"],
        "iscrowd": int(source.get("iscrowd") or 0),
    }


def _run_engine(truth: dict[str, Any], found: dict[str, Any], faster: bool) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, C, A, M] and recall [T, C, A, M]: IoU thresholds, recalls, classes, sizes, MAX_DETECTIONS."""
    if faster:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    def indexed(dataset: dict[str, Any]) -> Any:
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    evaluation = COCOeval(indexed(truth), indexed(found), "bbox")
    evaluation.params.maxDets = list(MAX_DETECTIONS)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _summary(precision: np.ndarray, recall: np.ndarray) -> CocoMetrics:
    """Means over what exists; the engines mark what doesn't with -1."""

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
