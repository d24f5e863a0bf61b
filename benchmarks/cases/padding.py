"""Measure what it costs to keep the padding of the canvas out of the network (model.padding).

    python -m benchmarks.cases.padding --config configs/NAME.py --batch 2 --height 256 --width 256

Both training steps are compiled, and take turns in the phase after the warm-up. Images are noise, a quarter smaller
than the canvas; weights are scaled noise.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from benchmarks.harness.inputs import random_variables
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
from tood_jax.config import ModelConfig
from tood_jax.models.build import build_model
from tood_jax.training.train_step import warmup_steps

NAME = "padding"
PADDINGS: tuple[Literal["canvas", "masked"], ...] = ("canvas", "masked")


@dataclass(frozen=True)
class Args(TrainingStepOptions):
    """Options of the case."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Compare training steps with the padding masked and not.")
    config = with_negligible_learning_rate(config, args.batch)
    report = begin_report(NAME, argv, args, config)
    variables = random_variables(build_model(config, args.classes), args.seed)
    batch = random_training_batch(args, config)
    batch = batch._replace(sizes=batch.sizes * 3 // 4)

    programs: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for padding in PADDINGS:
        own = dataclasses.replace(config, model=ModelConfig(padding))
        program, step = compile_training_step(own, args.classes, variables, batch, device_mesh(args.devices))
        programs[padding] = program.about
        runs[padding] = functools.partial(_finite_loss, step, warmup_steps(config, STEPS_PER_EPOCH))
    timings = time_interleaved(runs, args.repeats)
    results = [{"padding": padding, **programs[padding], **timings[padding]} for padding in PADDINGS]
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {config.train.precision}",
        ["model.padding", "ms a step: median (min–max)", "GFLOP", "GB accessed", "program, MiB", "compile, s"],
        [
            [
                row["padding"],
                format_milliseconds(row),
                row["flops"] and row["flops"] / 1e9,
                row["bytes_accessed"] and row["bytes_accessed"] / 1e9,
                to_mebibytes(row["memory"] and row["memory"]["total"]),
                row["compile_seconds"],
            ]
            for row in results
        ],
    )
    ratio = results[1]["median_seconds"] / results[0]["median_seconds"]
    print(f"masked / canvas: {ratio:.3f} of the time")
    return finish_report(report, args, results=results, masked_over_canvas=ratio)


def _finite_loss(step: Callable[[int], Any], step_count: int) -> Any:
    state, metrics = step(step_count)
    loss = float(metrics["loss"])
    assert np.isfinite(loss), f"a loss of {loss}"
    return jax.block_until_ready(state)


if __name__ == "__main__":
    main()
