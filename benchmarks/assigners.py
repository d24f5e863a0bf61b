"""Time and memory of the two assigners against the number of objects, beside the plain PyTorch ones.

    python -m benchmarks.assigners --objects 1 10 100 1000 5000 --batch 16

Objects are worked off in chunks of 64, so that memory follows the chunk and not the objects. For comparison the same
assignment is also compiled, but not run, with all objects in one piece: `memory_in_one_piece`.

PyTorch's (`tood_jax.torch_reference`; pip install torch==2.13.0) takes image after image and object after object. Its
memory is what the process grew by in its first run; on a GPU, the most that its allocator held. --no_peer leaves it
out.

Axes: B images · N cells · M objects · C classes.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks import ours
from benchmarks.common import (
    Options,
    Report,
    begin_report,
    compile_program,
    finish_report,
    interleaved,
    load_peers,
    mebi,
    ms,
    print_table,
    random_batch,
    read_options,
)
from benchmarks.first_run import first_run
from benchmarks.task import Run, make_to_assign
from tood_jax.config import LearningConfig

NAME = "assigners"
LEARNING = LearningConfig()


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
    peer: bool = True
    """Race PyTorch's too."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time and memory of the assigners against the number of objects.")
    peers = load_peers("pip install torch==2.13.0, or --no_peer") if args.peer else None
    report = begin_report(NAME, argv, args)
    results = []
    for objects in args.objects:
        batch = random_batch(
            args.batch,
            args.height,
            args.width,
            objects=objects,
            max_objects=objects,
            classes=args.classes,
            seed=args.seed,
        )
        given = make_to_assign(batch, args.classes, args.seed)
        for name, (assign, arguments) in ours.assigners(given, LEARNING).items():
            cases, row = _prepare(assign, jax.device_put(arguments), chunk=objects)
            if peers:
                cases["torch"] = peers.assigner(given, LEARNING, name)
                row["torch_memory"] = first_run(cases["torch"], peers.peak_bytes)["grown_bytes"]
            timings = interleaved(cases, args.repeats)
            results.append({"assigner": name, "objects": objects, **row, **timings["ours"]})
            if peers:
                results[-1]["torch"] = timings["torch"]
            print(f"{name}, {objects}: {timings['ours']['median_seconds']:.3f} s", flush=True)
    results.sort(key=lambda row: row["assigner"], reverse=True)
    print_table(
        f"Assigners, batch {args.batch}, {args.height} × {args.width}, {args.classes} classes; MiB of temporaries",
        ["assigner", "objects", "ms: median (min–max)", "MiB", "one piece", "torch, ms", "/ ours", "MiB", "positives"],
        [_line(row) for row in results],
    )
    return finish_report(report, args, results=results)


def _prepare(assign: Callable, arguments: tuple, chunk: int) -> tuple[dict[str, Run], dict[str, Any]]:
    program = compile_program(jax.jit(assign), *arguments)
    whole = compile_program(jax.jit(functools.partial(assign, chunk=chunk)), *arguments)
    about = {
        "positives": int((program.run(*arguments).gt_index >= 0).sum()),
        "program": program.about,
        "memory_in_one_piece": whole.about["memory"],
    }
    return {"ours": functools.partial(program.run, *arguments)}, about


def _line(row: dict[str, Any]) -> list[Any]:
    memories = (row["program"]["memory"], row["memory_in_one_piece"])
    mine = [mebi(memory and memory["temporaries"]) for memory in memories]
    theirs = [None] * 3
    if "torch" in row:
        ratio = row["torch"]["median_seconds"] / row["median_seconds"]
        theirs = [ms(row["torch"]), ratio, mebi(row["torch_memory"])]
    return [row["assigner"], row["objects"], ms(row), *mine, *theirs, row["positives"]]


if __name__ == "__main__":
    main()
