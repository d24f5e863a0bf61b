"""Time and memory of the two assigners against the number of objects.

    python -m benchmarks.assigners --objects 1 10 100 1000 5000

Objects are worked off in chunks of 64, so that memory follows the chunk and not the objects. For comparison the same
assignment is also compiled, but not run, with all objects in one piece: `memory_in_one_piece`.

Axes: B images · N cells · M objects · C classes.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from benchmarks.common import (
    Options,
    Report,
    begin_report,
    compile_program,
    finish_report,
    interleaved,
    mebi,
    ms,
    print_table,
    random_batch,
    random_predictions,
    read_options,
)
from tood_jax.assigners.atss import assign_atss_batch
from tood_jax.assigners.task_aligned import assign_task_aligned_batch
from tood_jax.config import HeadConfig
from tood_jax.detectors.detector import canvas_pyramid
from tood_jax.geometry.pyramid import cells_in_image

NAME = "assigners"


@dataclass(frozen=True)
class Args(Options):
    """Of the benchmark."""

    objects: tuple[int, ...] = (1, 10, 100, 1000, 5000)
    """M, objects an image, all real; one measurement each."""
    batch: int = 1
    """Images."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    classes: int = 80
    """C."""


def assigner_calls(args: Args, objects: int) -> dict[str, tuple[Callable, tuple]]:
    """Each assigner and its arguments for M objects an image; the functions take `chunk`."""
    batch = random_batch(
        args.batch,
        args.height,
        args.width,
        objects=objects,
        max_objects=objects,
        classes=args.classes,
        seed=args.seed,
    )
    cells = canvas_pyramid(batch)
    pred = random_predictions(batch, args.classes, args.seed)
    valid = cells_in_image(cells, jnp.asarray(batch.sizes))
    boxes = pred.boxes * cells.strides[:, None]
    atss = functools.partial(assign_atss_batch, level_slices=cells.level_slices)
    return {
        "task_aligned": (
            assign_task_aligned_batch,
            (pred.scores, boxes, cells.points, valid, batch.gt_boxes, batch.gt_labels, batch.gt_mask),
        ),
        "atss": (atss, (cells.anchors(HeadConfig().anchor_scale), valid, batch.gt_boxes, batch.gt_mask)),
    }


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time and memory of the assigners against the number of objects.")
    report = begin_report(NAME, argv, args)
    cases, rows = {}, {}
    for objects in args.objects:
        for name, (assign, host_arguments) in assigner_calls(args, objects).items():
            arguments = jax.device_put(host_arguments)
            program = compile_program(jax.jit(assign), *arguments)
            whole = compile_program(jax.jit(functools.partial(assign, chunk=objects)), *arguments)
            positives = int((program.run(*arguments).gt_index >= 0).sum())
            cases[f"{name}, {objects}"] = functools.partial(program.run, *arguments)
            rows[f"{name}, {objects}"] = {
                "assigner": name,
                "objects": objects,
                "positives": positives,
                "program": program.about,
                "memory_in_one_piece": whole.about["memory"],
            }
    timings = interleaved(cases, args.repeats)
    results = [{**row, **timings[name]} for name, row in rows.items()]
    results.sort(key=lambda row: row["assigner"], reverse=True)
    print_table(
        f"Assigners, batch {args.batch}, {args.height} × {args.width}, {args.classes} classes; MiB of temporaries",
        ["assigner", "objects", "ms: median (min–max)", "compile, s", "chunks, MiB", "one piece, MiB", "positives"],
        [
            [
                r["assigner"],
                r["objects"],
                ms(r),
                r["program"]["compile_seconds"],
                mebi(r["program"]["memory"] and r["program"]["memory"]["temporaries"]),
                mebi(r["memory_in_one_piece"] and r["memory_in_one_piece"]["temporaries"]),
                r["positives"],
            ]
            for r in results
        ],
    )
    return finish_report(report, args, results=results)


if __name__ == "__main__":
    main()
