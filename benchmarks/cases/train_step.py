"""Measure speed, memory and cost of one training step, in both phases.

    python -m benchmarks.cases.train_step --config configs/NAME.py --batch 2 --height 256 --width 256

The step is the one that training runs (forward pass, assignment, losses, gradient, update), compiled once for both
phases. Images are noise and weights are scaled noise; the learning rate is 1e-12, so that all repeats do the same work.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from benchmarks.harness.inputs import random_variables
from benchmarks.harness.memory import process_memory
from benchmarks.harness.options import TrainingStepOptions, read_options_and_config
from benchmarks.harness.programs import device_mesh
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table, to_mebibytes
from benchmarks.harness.timing import time_interleaved
from benchmarks.harness.training_step import (
    STEPS_PER_EPOCH,
    compile_training_step,
    random_training_batch,
    with_negligible_learning_rate,
)
from tood_jax.models.build import build_model
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import warmup_steps

NAME = "train_step"


@dataclass(frozen=True)
class Args(TrainingStepOptions):
    """Options of the case."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Time one training step in both phases.")
    config = with_negligible_learning_rate(config, args.batch)
    report = begin_report(NAME, argv, args, config)
    variables = random_variables(build_model(config, args.classes), args.seed)
    batch = random_training_batch(args, config)
    program, step = compile_training_step(config, args.classes, variables, batch, device_mesh(args.devices))
    metrics: dict[str, dict[str, float]] = {}

    def run(phase: str, step_count: int) -> TrainState:
        state, found = step(step_count)
        metrics[phase] = {name: float(found[name]) for name in ("loss", "finite", "task_aligned") if name in found}
        return state

    warmup = warmup_steps(config, STEPS_PER_EPOCH)
    assigner = config.assigner.kind
    phases = {assigner: warmup} if warmup == 0 else {"warmup_atss": 0, assigner: warmup}
    runs = {phase: functools.partial(run, phase, step_count) for phase, step_count in phases.items()}
    timings = time_interleaved(runs, args.repeats)

    results = [
        {
            "phase": phase,
            "images_per_second": args.batch / timing["median_seconds"],
            "flops_per_second": program.about["flops"] and program.about["flops"] / timing["median_seconds"],
            **timing,
            **metrics[phase],
        }
        for phase, timing in timings.items()
    ]
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {config.train.precision}",
        ["phase", "ms a step: median (min–max)", "images/s", "first call, s", "GFLOP/s"],
        [
            [
                *(row["phase"], format_milliseconds(row), row["images_per_second"], row["first_seconds"]),
                (row["flops_per_second"] or 0) / 1e9,
            ]
            for row in results
        ],
    )
    about, memory = program.about, process_memory()
    print_table(
        "The program, the same for both phases",
        ["compile, s", "trace, s", "GFLOP", "GB accessed", "program, MiB", "peak resident, MiB", "peak device, MiB"],
        [
            [
                about["compile_seconds"],
                about["trace_seconds"],
                about["flops"] and about["flops"] / 1e9,
                about["bytes_accessed"] and about["bytes_accessed"] / 1e9,
                to_mebibytes(about["memory"] and about["memory"]["total"]),
                to_mebibytes(memory["peak_resident_bytes"]),
                to_mebibytes(memory["peak_device_bytes"]),
            ]
        ],
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables[0]))
    return finish_report(report, args, parameters=parameters, program=about, results=results)


if __name__ == "__main__":
    main()
