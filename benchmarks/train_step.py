"""Speed, memory and cost of one training step, in both phases.

    python -m benchmarks.train_step --config configs/NAME.py --batch 2 --height 256 --width 256

The step is the product's own (forward, assignment, losses, gradient, update), compiled once for both phases. Images
are noise and weights are scaled noise; the learning rate is set to 1e-12, so that the repeats do the same work.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.common import (
    ModelOptions,
    Program,
    Report,
    begin_report,
    compile_program,
    filled_variables,
    finish_report,
    interleaved,
    mebi,
    mesh_of,
    ms,
    print_table,
    process_memory,
    random_batch,
    read_options_and_config,
)
from tood_jax.build import build_model
from tood_jax.config import Config
from tood_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tood_jax.training.sharding import put_batch, replicated
from tood_jax.training.state import TrainState
from tood_jax.training.step import compile_train_step, warmup_steps
from tood_jax.types import Batch

NAME = "train_step"
STEPS_PER_EPOCH = 1000  # any number: it only places the end of the warm-up


@dataclass(frozen=True)
class Args(ModelOptions):
    """Of the training step."""

    objects: int = 8
    """Objects an image; padded to the config's data.max_objects."""


def standing_still(config: Config, images: int) -> Config:
    """For steps of so many images, at a learning rate that changes nothing, so that repeats do the same work."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_size=images),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-12),
    )


def compile_step(
    config: Config, num_classes: int, variables: tuple[Any, Any], batch: Batch, mesh: Mesh
) -> tuple[Program, Callable[[int], Any]]:
    """The product's step, and a run of it from a given step count.

    Args:
        variables: (params, batch_stats), on the host.
        batch: on the host.

    Returns:
        The program, and number → (state, metrics); a run uses up the state's buffers of the run before.
    """
    model = build_model(config, num_classes)
    schedule = learning_rate_schedule(
        config.optimizer,
        batch_size=config.train.batch_size,
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=config.train.epochs,
    )
    optimizer = make_optimizer(config)
    params, batch_stats = variables
    ema = {} if config.optimizer.ema_decay is None else params
    everywhere = replicated(mesh)
    state = jax.device_put(TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), ema), everywhere)
    placed = put_batch(batch, mesh)
    step = compile_train_step(model, config, optimizer, schedule, STEPS_PER_EPOCH, mesh)
    program = compile_program(step, state, placed)

    def run(number: int) -> Any:
        nonlocal state
        state, metrics = program.run(state._replace(step=jax.device_put(np.int32(number), everywhere)), placed)
        return state, metrics

    return program, run


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = read_options_and_config(Args, argv, NAME, "Time one training step in both phases.")
    config = standing_still(config, args.batch)
    report = begin_report(NAME, argv, args, config)
    variables = filled_variables(build_model(config, args.classes), args.seed)
    batch = random_batch(
        args.batch,
        args.height,
        args.width,
        objects=args.objects,
        max_objects=max(args.objects, config.data.max_objects),
        classes=args.classes,
        seed=args.seed,
    )
    program, step = compile_step(config, args.classes, variables, batch, mesh_of(args.devices))
    metrics: dict[str, dict[str, float]] = {}

    def run(phase: str, number: int) -> TrainState:
        """One step from a given step count."""
        state, found = step(number)
        metrics[phase] = {name: float(found[name]) for name in ("loss", "finite", "task_aligned") if name in found}
        return state

    warm = warmup_steps(config, STEPS_PER_EPOCH)
    assigner = config.learning.assigner
    phases = {assigner: warm} if warm == 0 else {"warmup_atss": 0, assigner: warm}
    timings = interleaved({name: functools.partial(run, name, number) for name, number in phases.items()}, args.repeats)

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
            [r["phase"], ms(r), r["images_per_second"], r["first_seconds"], (r["flops_per_second"] or 0) / 1e9]
            for r in results
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
                mebi(about["memory"] and about["memory"]["total"]),
                mebi(memory["peak_resident_bytes"]),
                mebi(memory["peak_device_bytes"]),
            ]
        ],
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables[0]))
    return finish_report(report, args, parameters=parameters, program=about, results=results)


if __name__ == "__main__":
    main()
