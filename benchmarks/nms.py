"""Class-wise NMS of one image: the product's (fixed size, compiled) against the textbook's in numpy.

    python -m benchmarks.nms --candidates 1000 5000 --detections 100

Both get the same candidates, stop at the same number of detections, and must keep the same boxes in the same order;
if they don't, the command ends with status 1.

Axes: S candidates · K detections. Boxes are xyxy, pixels.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from benchmarks.common import (
    Options,
    Report,
    begin_report,
    compile_program,
    finish_report,
    interleaved,
    ms,
    print_table,
    read_options,
)
from tood_jax.postprocess import nms

NAME = "nms"


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    candidates: tuple[int, ...] = (1000, 5000)
    """S; one measurement each."""
    detections: int = 100
    """K."""
    classes: int = 80
    """C."""
    objects: int = 40
    """Clusters that the candidates gather around."""
    iou: float = 0.6
    """Two boxes of one class with a larger IoU: the lower score goes."""


def random_candidates(args: Args, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores (all different) and labels of S candidates, gathered around objects, on 800 × 1333 pixels."""
    rng = np.random.default_rng([args.seed, count])
    sides = rng.uniform(40, 300, (args.objects, 2))
    corner = rng.uniform(0, 1, (args.objects, 2)) * ([1333, 800] - sides)
    objects = np.concatenate([corner, corner + sides], axis=1)
    which = rng.integers(0, args.objects, count)
    jitter = rng.normal(0, 0.08, (count, 4)) * np.tile(sides[which], 2)
    labels = rng.integers(0, args.classes, args.objects)[which]
    scores = (rng.permutation(count) + 1) / count  # far enough apart to be different in float32
    return (objects[which] + jitter).astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


def greedy_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float, detections: int) -> np.ndarray:
    """The textbook's: sort, take the best, drop what overlaps it; [K], -1 after the last."""
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
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compare the compiled NMS with a greedy one in numpy.")
    report = begin_report(NAME, argv, args)
    cases, rows = {}, []
    for count in args.candidates:
        host = random_candidates(args, count)
        device = jax.device_put(host)
        compiled = jax.jit(functools.partial(nms, iou_threshold=args.iou, max_detections=args.detections))
        program = compile_program(compiled, *device)
        ours = np.asarray(program.run(*device))
        plain = functools.partial(greedy_nms, *host, args.iou, args.detections)
        cases[f"ours, {count}"] = functools.partial(program.run, *device)
        cases[f"numpy, {count}"] = plain
        rows.append(
            {
                "candidates": count,
                "kept": int((ours >= 0).sum()),
                "same_boxes": bool(np.array_equal(ours, plain())),
                "program": program.about,
            }
        )
    timings = interleaved(cases, args.repeats)
    results = []
    for row in rows:
        ours_time, numpy_time = (timings[f"{name}, {row['candidates']}"] for name in ("ours", "numpy"))
        ratio = numpy_time["median_seconds"] / ours_time["median_seconds"]
        results.append({**row, "ours": ours_time, "numpy": numpy_time, "numpy_over_ours": ratio})
    print_table(
        f"NMS of one image, {args.detections} detections, {args.classes} classes, {args.objects} clusters",
        ["candidates", "ours, ms: median (min–max)", "numpy, ms", "numpy / ours", "compile, s", "kept", "same boxes"],
        [
            [
                r["candidates"],
                ms(r["ours"]),
                ms(r["numpy"]),
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
        raise SystemExit("The two kept different boxes.")
    return report


if __name__ == "__main__":
    main()
