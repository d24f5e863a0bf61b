"""Write the report of an evaluation: a page, tables and pictures."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tood_jax.data.dataset import Dataset, class_names
from tood_jax.evaluation.coco_ap import format_ap
from tood_jax.evaluation.evaluate import Evaluation
from tood_jax.report.analysis import WORST_IMAGES, Analysis, analyze
from tood_jax.report.figures import ERROR_NAMES, draw_figures
from tood_jax.report.page import Section, Shown, paragraph, picture, render_page, table, text
from tood_jax.report.pictures import Picture, draw_worst
from tood_jax.run_log.strict_json import json_safe
from tood_jax.untrusted.printable import printable

FIGURES = ("pr.png", "f1.png", "confusion.png", "reliability.png", "errors.png")
TABLES = ("metrics.json", "per_class.csv", "confusion.csv", "label_suspects.csv")
PAGE = "report.html"
FILES = (PAGE, *TABLES, *FIGURES, *(f"worst/{number:02d}.jpg" for number in range(1, WORST_IMAGES + 1)))
"""Every file that a report may have."""
_SHOWN_SUSPECTS = 50
_PER_CLASS = (
    "class", "AP", "AP low", "AP high", "AP50", "AP75", "precision", "recall", "F1", "best threshold", "objects",
    "images",
)  # fmt: skip
_SUSPECTS = (
    "image", "kind", "annotated class", "detected class", "score", "IoU", "x", "y", "width", "height",
)  # fmt: skip


def write_report(
    write: Callable[[str, bytes], None],
    evaluation: Evaluation,
    dataset: Dataset,
    *,
    name: str,
    step: int,
    source: str,
    bit_depth: int = 16,
    more_sections: Sequence[Section] = (),
) -> Analysis:
    """Analyse an evaluation and write its files; needs the packages of the extra `report`.

    Args:
        write: called with the name of each file in the folder of the report, and its content.
        evaluation: of `dataset`, which has annotations.
        dataset: a split that was read for evaluation.
        name: of the config, for the heading.
        step: of the checkpoint.
        source: name of the data, for the heading.
        bit_depth: data.bit_depth.
        more_sections: sections of other analyses, at the end of the page.
    """
    analysis = analyze(dataset.ground_truth(), evaluation.results, evaluation.metrics)
    names = class_names(dataset.classes)
    summary = json_safe(_none_for_nan(summarize(analysis, dataset, evaluation, step, source)))
    files = {
        "metrics.json": json.dumps(summary, indent=1).encode(),
        "per_class.csv": _csv(_PER_CLASS, per_class_rows(analysis, names)),
        "confusion.csv": _csv(("object", *names, "(missed)"), _confusion_rows(analysis, names)),
        "label_suspects.csv": _csv(_SUSPECTS, _suspect_rows(analysis, dataset)),
        **draw_figures(analysis, names),
    }
    pictures = draw_worst(analysis.worst, dataset, bit_depth, WORST_IMAGES)
    files |= {one.file: one.data for one in pictures}
    sections = [*_sections(analysis, dataset, evaluation, files, pictures), *more_sections]
    files[PAGE] = render_page(
        f"Evaluation of {name}, step {step}", f"{source}: {_describe_data(analysis, dataset, evaluation)}", sections
    ).encode()
    for name, data in files.items():
        write(name, data)
    return analysis


def summarize(analysis: Analysis, dataset: Dataset, evaluation: Evaluation, step: int, source: str) -> dict[str, Any]:
    """Return the numbers of a report for JSON; intervals are [low, high] of 95 % of the bootstrap samples."""
    classes = [
        {
            "id": info.id,
            "name": info.name,
            "AP": ap.ap,
            "AP_interval": list(ap.interval),
            "AP50": ap.ap50,
            "AP75": ap.ap75,
            **count._asdict(),
        }
        for info, ap, count in zip(dataset.classes, analysis.class_ap, analysis.counts, strict=True)
    ]
    return {
        "step": step,
        "data": source,
        "images": len(dataset.images),
        "objects": len(analysis.matches.object_label),
        "detections": len(evaluation.results),
        "metrics": evaluation.metrics.numbers(),
        "intervals": {name: list(bounds) for name, bounds in analysis.intervals.items()},
        "losses": evaluation.losses,
        "classes": classes,
        "calibration": {key: analysis.calibration[key] for key in ("ece", "mce", "bins")},
        "errors": {
            name: {"AP50_cost": analysis.errors["delta_ap"][kind], "count": analysis.errors["counts"][kind]}
            for kind, name in ERROR_NAMES.items()
        },
        "left_out": evaluation.left_out,
    }


def _none_for_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_for_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_none_for_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def per_class_rows(analysis: Analysis, names: Sequence[str]) -> list[list[Any]]:
    """Return the rows of per_class.csv."""
    return [
        [name, ap.ap, *ap.interval, ap.ap50, ap.ap75, c.precision, c.recall, c.f1, c.threshold, c.objects, c.images]
        for name, ap, c in zip(names, analysis.class_ap, analysis.counts, strict=True)
    ]


def _confusion_rows(analysis: Analysis, names: Sequence[str]) -> list[list[Any]]:
    return [[name, *row] for name, row in zip([*names, "(no object)"], analysis.confusion.tolist(), strict=True)]


def _suspect_rows(analysis: Analysis, dataset: Dataset) -> list[list[Any]]:
    names, files = class_names(dataset.classes), {image.id: image.path.name for image in dataset.images}
    return [
        [
            files[one.image_id],
            one.kind.replace("_", " "),
            "" if one.annotated is None else names[one.annotated],
            names[one.detected],
            round(one.score, 4),
            round(one.iou, 4),
            *(round(number, 1) for number in one.box),
        ]
        for one in analysis.suspects
    ]


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return a CSV file in UTF-8; NaN is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in header])
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return out.getvalue().encode()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return printable(value) if isinstance(value, str) else value


def _describe_data(analysis: Analysis, dataset: Dataset, evaluation: Evaluation) -> str:
    return (
        f"{len(dataset.images):,} images, {len(analysis.matches.object_label):,} objects, "
        f"{len(dataset.classes)} classes, {len(evaluation.results):,} detections"
    )


def _sections(
    analysis: Analysis,
    dataset: Dataset,
    evaluation: Evaluation,
    files: Mapping[str, bytes],
    pictures: Sequence[Picture],
) -> list[Section]:
    names = class_names(dataset.classes)
    figures = {name: picture(files[name], "png", name) for name in FIGURES}
    suspects = _suspect_rows(analysis, dataset)
    return [
        Section("Summary", _summary(analysis, evaluation)),
        Section(
            "Classes",
            paragraph(
                "AP in percent with 95 % of the bootstrap samples in brackets. Precision, recall and F1 at IoU 0.5 and "
                "the best threshold, the score with the highest F1. Click a heading to sort."
            )
            + table(_CLASS_HEADER, _class_table(analysis, names)),
        ),
        Section("Precision and recall", figures["pr.png"] + figures["f1.png"]),
        Section(
            "Confusion",
            paragraph(
                "Rows: annotated objects; columns: the class of the detection that covers them (IoU 0.5, whatever its "
                "class), at the best thresholds."
            )
            + figures["confusion.png"],
        ),
        Section(
            "Calibration",
            paragraph(
                f"ECE {analysis.calibration['ece']:.3f}: the mean distance between the score of a detection and the "
                "share of detections of that score that are right. The scores of TOOD are trained towards the quality "
                "of the box, so a distance is normal."
            )
            + figures["reliability.png"],
        ),
        Section(
            "Errors",
            paragraph(
                "Kinds of errors by TIDE: how much AP50 would rise without each kind. Classification: right place, "
                "wrong class; localization: right class, IoU 0.1 to 0.5; both: wrong class and such an IoU; duplicate: "
                "the object has a better detection; background: IoU below 0.1 with every object; missed: no detection."
            )
            + figures["errors.png"],
        ),
        Section("Worst images", _worst(pictures)),
        Section(
            "Label suspects",
            paragraph(
                f"{len(suspects):,} detections of score 0.5 or more that contradict the annotations; look whether the "
                f"annotation is wrong. Here the first {_SHOWN_SUSPECTS}; all are in label_suspects.csv."
            )
            + (table(_SUSPECTS, suspects[:_SHOWN_SUSPECTS]) if suspects else paragraph("There are none.")),
        ),
    ]


_CLASS_HEADER = (
    "class", "AP", "AP50", "AP75", "precision", "recall", "F1", "best threshold", "objects", "images",
)  # fmt: skip


def _class_table(analysis: Analysis, names: Sequence[str]) -> list[list[object]]:
    return [
        [
            name,
            Shown(ap.ap, format_ap(ap.ap, ap.interval)),
            *(Shown(value, f"{100 * value:.1f}") for value in (ap.ap50, ap.ap75)),
            count.precision, count.recall, count.f1, count.threshold, count.objects, count.images,
        ]
        for name, ap, count in zip(names, analysis.class_ap, analysis.counts, strict=True)
    ]  # fmt: skip


def _summary(analysis: Analysis, evaluation: Evaluation) -> str:
    numbers = evaluation.metrics.numbers()
    rows: list[list[object]] = [
        [
            name,
            Shown(
                value,
                format_ap(value, analysis.intervals[name]) if name in analysis.intervals else f"{100 * value:.1f}",
            ),
        ]
        for name, value in numbers.items()
    ]
    rows += [[f"validation {name.replace('_', ' ')}", value] for name, value in evaluation.losses.items()]
    left_out = paragraph(f"Left out: {evaluation.left_out}") if evaluation.left_out else ""
    explanation = paragraph(
        "COCO's numbers in percent; AP, AP50, AP75 and AP90 with the range of 95 % of 200 bootstrap samples of the "
        "images."
    )
    return explanation + table(("metric", "value"), rows) + left_out


def _worst(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return paragraph("No image has an error.")
    figures = "\n".join(
        f"<figure>{picture(one.data, 'jpeg', one.image)}<figcaption>{text(one.image)}: {one.right} right, {one.wrong} "
        f"wrong, {one.missed} missed</figcaption></figure>"
        for one in pictures
    )
    return (
        paragraph(
            "The images with most errors at the best thresholds. Green: right; red: wrong; dashed blue: missed objects."
        )
        + f'<div class="pictures">{figures}</div>'
    )
