"""Profile a training step stage by stage, beside the least time that each stage can take on this machine.

    python -m benchmarks.cases.step_profile --batch 2 --height 256 --width 256

The training step runs --repeats times under JAX's profiler. An operation belongs to the stage that the compiler names
as its origin, a fusion to that of its last operation; a product is an operation with a convolution or matrix product in
it. The least time is that of harness/roofline.py, in the precision of the run, at the rates of products and copies that
are measured here. Times are summed over the threads that run operations, or over a GPU's streams: where they overlap,
the sum is more than the step takes.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness.options import read_options_and_config, with_default_config
from benchmarks.harness.programs import program_text
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.roofline import (
    HEAD,
    LOSSES,
    OPTIMIZER,
    PROGRAM_STAGES,
    UNKNOWN_ORIGIN,
    StepSizes,
    network_work,
    remaining_work,
    stage_of,
    trace_network,
)
from benchmarks.harness.tables import print_table
from benchmarks.harness.timing import time_interleaved
from benchmarks.peers.inputs import InputOptions, random_inputs
from benchmarks.peers.load import load_plain_torch
from benchmarks.peers.protocol import Run
from benchmarks.peers.tood_jax_peer import training_workload
from tood_jax.config import Config
from tood_jax.run_log.profile_trace import Event, own_times, read_events
from tood_jax.tools.compile_for.hlo_text import Instruction, Program, read_program

NAME = "step_profile"
PRODUCT_KINDS = ("convolution", "dot")  # kinds of instructions
PRODUCT_ORIGINS = ("conv_general_dilated", "dot_general")  # ends of the origins of library calls
PROGRAM_STAGE = {"assigner": LOSSES, "losses": LOSSES, "sampling": HEAD, "optimizer": OPTIMIZER}  # of the roofline's


@dataclass(frozen=True)
class Args(InputOptions):
    """Options of the profile, which uses one device."""

    peer: bool = False
    """Profile PyTorch's step too, by its own profiler."""


class StageTime(NamedTuple):
    """Seconds of one stage in a step."""

    stage: str
    products: float
    others: float
    floor: float | None  # the least time, of products and all else; None where it is not counted


def main(argv: Sequence[str] | None = None) -> Report:
    """Profile, print the table and write the report."""
    argv = with_default_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Profile a training step stage by stage.")
    plain_torch = load_plain_torch() if args.peer else None
    report = begin_report(NAME, argv, args, config)
    inputs = random_inputs(args, config)
    step, program = training_workload(inputs)
    assert program is not None
    jax.block_until_ready(step())

    flops, bandwidth = measure_rates(config.train.precision, args.repeats)
    elapsed, events = profile(step, args.repeats)
    products, others = seconds_by_stage(events, read_program(program_text(program)))
    least = least_seconds_by_stage(config, args, flops, bandwidth)
    rows = [
        StageTime(name, products[name] / args.repeats, others[name] / args.repeats, least.get(name))
        for name, _ in PROGRAM_STAGES
    ]
    torch_seconds = plain_torch.profile_training(inputs, args.repeats) if plain_torch else None
    all_products, all_others = sum(row.products for row in rows), sum(row.others for row in rows)
    rows.append(StageTime("all", all_products, all_others, sum(row.floor or 0 for row in rows)))
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {config.train.precision}, a step",
        ["stage", "products, ms", "all else, ms", "least, ms", "time / least"],
        [_line(row) for row in rows],
    )
    print(
        f"\nA step under the profiler takes {1e3 * elapsed:.0f} ms. "
        f"The machine: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s."
    )
    if torch_seconds:
        print(f"PyTorch: products {1e3 * torch_seconds[0]:.0f} ms, all else {1e3 * torch_seconds[1]:.0f} ms.")
    machine = {"flops_per_second": flops, "bytes_per_second": bandwidth}
    results = [row._asdict() for row in rows]
    return finish_report(report, args, seconds_per_step=elapsed, rates=machine, torch=torch_seconds, results=results)


def _line(row: StageTime) -> list[str | float | None]:
    spent, least = row.products + row.others, row.floor
    return [row.stage, 1e3 * row.products, 1e3 * row.others, least and 1e3 * least, least and spent / least]


def measure_rates(dtype: str, repeats: int) -> tuple[float, float]:
    """Return FLOP/s of the product of two square matrices, and bytes/s of a sum in place over 256 MiB.

    The 256 MiB fit into no cache. Both are the best of several runs.
    """
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a, multiply = jnp.ones((side, side), dtype), jax.jit(jnp.matmul)
    x, add = jnp.zeros(2**26, jnp.float32), jax.jit(lambda x: x + 1, donate_argnums=0)

    def add_in_place() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    found = time_interleaved({"product": lambda: multiply(a, a), "sum": add_in_place}, max(repeats, 3))
    return 2 * side**3 / found["product"]["min_seconds"], 2 * x.nbytes / found["sum"]["min_seconds"]


def profile(run: Run, repeats: int) -> tuple[float, list[list[Event]]]:
    """Return the seconds of one run, and the events of all runs, one list for each thread or stream."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(run())
            elapsed = (time.perf_counter() - started) / repeats
        return elapsed, read_events(Path(folder))


def seconds_by_stage(
    lines: list[list[Event]], program: Program
) -> tuple[defaultdict[str, float], defaultdict[str, float]]:
    """Return the seconds of each stage in products, and in all else.

    Loops and branches get the time that none of the operations inside them took.
    """
    stages = {
        instruction.name: (str(stage_of(instruction.origin, PROGRAM_STAGES)), is_product(instruction, program))
        for instructions in program.computations.values()
        for instruction in instructions
    }
    products: defaultdict[str, float] = defaultdict(float)
    others: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        for name, nanoseconds in own_times(line):
            stage, product = stages.get(name, (UNKNOWN_ORIGIN, False))
            (products if product else others)[stage] += nanoseconds / 1e9
    return products, others


def is_product(instruction: Instruction, program: Program) -> bool:
    """Return whether an instruction is, or its fusion contains, a convolution or a matrix product."""
    kinds = {instruction.kind, *(inner.kind for inner in program.body(instruction))}
    return not kinds.isdisjoint(PRODUCT_KINDS) or instruction.origin.endswith(PRODUCT_ORIGINS)


def least_seconds_by_stage(config: Config, args: Args, flops: float, bandwidth: float) -> dict[str, float]:
    """Return the least seconds of each stage in one step at these rates."""
    sizes = StepSizes(args.batch, args.height, args.width, args.classes)
    network, total = trace_network(config, sizes), defaultdict[str, float](float)
    itemsize = jnp.dtype(config.train.precision).itemsize
    for stage, work in network_work(network, sizes, training=True, itemsize=itemsize):
        total[stage] += work.seconds(flops, bandwidth)
    for stage, work in remaining_work(config, network, sizes, training=True):
        total[PROGRAM_STAGE[stage]] += work.seconds(flops, bandwidth)
    return total


if __name__ == "__main__":
    main()
