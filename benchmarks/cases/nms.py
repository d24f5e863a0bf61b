"""Time class-wise NMS of one image: tood_jax's (fixed size, compiled) and a greedy one in numpy.

    python -m benchmarks.cases.nms --candidates 1000 5000 --detections 100

Both get the same candidates, stop at the same number of detections, and must keep the same boxes in the same order; if
they do not, the command ends with status 1.

Axes: S candidates · K detections. Boxes are xyxy, pixels.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from benchmarks.harness.inputs import random_nms_candidates
from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import compile_program
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table
from benchmarks.harness.timing import time_interleaved
from tood_jax.postprocess import nms

NAME = "nms"


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    candidates: tuple[int, ...] = (1000, 5000)
    """Numbers of candidates S; one measurement each."""
    detections: int = 100
    """Largest number of detections K."""
    classes: int = 80
    """Number of classes C."""
    objects: int = 40
    """Objects that the candidates lie around."""
    iou: float = 0.6
    """Of two boxes of one class with a larger IoU, the one with the lower score is dropped."""


def greedy_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float, detections: int) -> np.ndarray:
    """Take the best box, drop what overlaps it, repeat; return the kept boxes' indices, [K], -1 after the last."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = np.full(detections, -1, np.int32)
    for round_ in range(detections):
        if not len(order):
            break
        best, rest = order[0], order[1:]
        kept[round_] = best
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = np.maximum(high - low, 0).prod(axis=1)
        found = overlap / (area[best] + area[rest] - overlap)
        order = rest[(found <= iou) | (labels[rest] != labels[best])]
    return kept


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compare the compiled NMS with a greedy one in numpy.")
    report = begin_report(NAME, argv, args)
    runs, rows = {}, []
    for count in args.candidates:
        host = random_nms_candidates(count, objects=args.objects, classes=args.classes, seed=args.seed)
        device = jax.device_put(host)
        compiled = jax.jit(functools.partial(nms, iou_threshold=args.iou, max_detections=args.detections))
        program = compile_program(compiled, *device)
        kept = np.asarray(program.run(*device))
        plain = functools.partial(greedy_nms, *host, args.iou, args.detections)
        runs[f"ours, {count}"] = functools.partial(program.run, *device)
        runs[f"numpy, {count}"] = plain
        rows.append(
            {
                "candidates": count,
                "kept": int((kept >= 0).sum()),
                "same_boxes": bool(np.array_equal(kept, plain())),
                "program": program.about,
            }
        )
    timings = time_interleaved(runs, args.repeats)
    results = []
    for row in rows:
        own_timing, numpy_timing = (timings[f"{name}, {row['candidates']}"] for name in ("ours", "numpy"))
        ratio = numpy_timing["median_seconds"] / own_timing["median_seconds"]
        results.append({**row, "ours": own_timing, "numpy": numpy_timing, "numpy_over_ours": ratio})
    print_table(
        f"NMS of one image, {args.detections} detections, {args.classes} classes, {args.objects} clusters",
        ["candidates", "ours, ms: median (min–max)", "numpy, ms", "numpy / ours", "compile, s", "kept", "same boxes"],
        [
            [
                r["candidates"],
                format_milliseconds(r["ours"]),
                format_milliseconds(r["numpy"]),
                r["numpy_over_ours"],
                r["program"]["compile_seconds"],
                r["kept"],
                "yes" if r["same_boxes"] else "NO",
            ]
            for r in results
        ],
    )
    report = finish_report(report, args, results=results)
    if not all(row["same_boxes"] for row in results):
        raise SystemExit("tood_jax and numpy kept different boxes.")
    return report


if __name__ == "__main__":
    main()
