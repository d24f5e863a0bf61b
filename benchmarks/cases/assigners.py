"""Measure time and memory of the two assigners for several numbers of objects, beside the plain PyTorch ones.

    python -m benchmarks.cases.assigners --objects 1 10 100 1000 5000 --batch 16

Objects are assigned in chunks of 64, so that memory depends on the chunk and not on the number of objects. For
comparison the same assignment is also compiled, but not run, with all objects in one chunk: `memory_in_one_piece`.

PyTorch's assigners (tools/compare_torch/torch_reference; pip install torch==2.13.0) process image after image and
object after object. Their memory is the growth of the process in the first run; on a GPU, the allocator's peak.
--no_peer leaves them out.

Axes: B images · N locations · M objects · C classes.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks.harness.inputs import random_batch
from benchmarks.harness.memory import measure_first_run
from benchmarks.harness.options import Options, read_options
from benchmarks.harness.programs import compile_program
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table, to_mebibytes
from benchmarks.harness.timing import time_interleaved
from benchmarks.peers.inputs import random_assigner_inputs
from benchmarks.peers.load import INSTALL_TORCH, load_plain_torch
from benchmarks.peers.protocol import Run
from benchmarks.peers.tood_jax_peer import assigner_calls
from tood_jax.config import AssignerConfig

NAME = "assigners"
LEARNING = AssignerConfig()


@dataclass(frozen=True)
class Args(Options):
    """Options of the case."""

    objects: tuple[int, ...] = (1, 10, 100, 1000, 5000)
    """M, objects per image without padding; one measurement each."""
    batch: int = 1
    """Images."""
    height: int = 800
    """Canvas height, pixels."""
    width: int = 1344
    """Canvas width, pixels."""
    classes: int = 80
    """Number of classes C."""
    peer: bool = True
    """Measure PyTorch's assigners too."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Time and memory of the assigners against the number of objects.")
    plain_torch = load_plain_torch(f"{INSTALL_TORCH}, or --no_peer") if args.peer else None
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
        inputs = random_assigner_inputs(batch, args.classes, args.seed)
        for name, (assign, arguments) in assigner_calls(inputs, LEARNING).items():
            runs, row = _prepare(assign, jax.device_put(arguments), chunk=objects)
            if plain_torch:
                runs["torch"] = plain_torch.assigner_run(inputs, LEARNING, name)
                row["torch_memory"] = measure_first_run(runs["torch"], plain_torch.peak_device_bytes)["grown_bytes"]
            timings = time_interleaved(runs, args.repeats)
            results.append({"assigner": name, "objects": objects, **row, **timings["tood_jax"]})
            if plain_torch:
                results[-1]["torch"] = timings["torch"]
            print(f"{name}, {objects}: {timings['tood_jax']['median_seconds']:.3f} s", flush=True)
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
    return {"tood_jax": functools.partial(program.run, *arguments)}, about


def _line(row: dict[str, Any]) -> list[Any]:
    memories = (row["program"]["memory"], row["memory_in_one_piece"])
    temporaries = [to_mebibytes(memory and memory["temporaries"]) for memory in memories]
    of_torch: list[str | float | None] = [None] * 3
    if "torch" in row:
        ratio = row["torch"]["median_seconds"] / row["median_seconds"]
        of_torch = [format_milliseconds(row["torch"]), ratio, to_mebibytes(row["torch_memory"])]
    return [row["assigner"], row["objects"], format_milliseconds(row), *temporaries, *of_torch, row["positives"]]


if __name__ == "__main__":
    main()
