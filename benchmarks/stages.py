"""Where the time of a training step goes, stage by stage, beside the least that it can take on this machine.

    python -m benchmarks.stages --batch 2 --height 256 --width 256

The product's step runs --repeats times under JAX's profiler. An operation counts where the compiler says that it comes
from, a fusion where its last operation does; a product is an operation with a convolution or matrix product in it. The
floor is that of floors.py, in the precision of the run, at the rates of products and copies that are measured here
too. Times are summed over the threads that run operations, or over a GPU's streams: where they overlap, the sum is
more than the step takes.
"""

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import floors, ours
from benchmarks.common import (
    Report,
    begin_report,
    finish_report,
    interleaved,
    load_peers,
    print_table,
    read_options_and_config,
    with_config,
)
from benchmarks.task import Run, Sizes, make_task
from tood_jax.ahead_of_time.hlo_text import Instruction, Program, read_program
from tood_jax.config import Config

NAME = "stages"
STAGES = (*floors.STAGES, *floors.REST)
PRODUCTS = ("convolution", "dot")  # kinds of instructions
NAMED_PRODUCTS = ("conv_general_dilated", "dot_general")  # what a call of a library comes from
FLOORS = {"assigner": floors.LOSSES, "losses": floors.LOSSES, "sampling": floors.HEAD, "optimizer": floors.OPTIMIZER}


@dataclass(frozen=True)
class Args(Sizes):
    """Of the profile; one device."""

    peer: bool = False
    """PyTorch's step too, by its own profiler."""


class Event(NamedTuple):
    """An operation that ran, on one thread or stream."""

    name: str
    start: float  # nanoseconds
    duration: float


def main(argv: Sequence[str] | None = None) -> Report:
    """Profile, print, write."""
    argv = with_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Time a training step, stage by stage.")
    peers = load_peers() if args.peer else None
    report = begin_report(NAME, argv, args, config)
    task = make_task(args, config)
    step, program = ours.runs(task)["training step"]()
    jax.block_until_ready(step())

    flops, bandwidth = rates(config.train.precision, args.repeats)
    elapsed, events = profile(step, args.repeats)
    products, others = seconds_by_stage(events, read_program(program.run.as_text()))
    floor = floor_by_stage(config, args, flops, bandwidth)
    rows = [
        {"stage": name, "products": products[name] / args.repeats, "others": others[name] / args.repeats}
        | {"floor": floor.get(name)}
        for name, _ in STAGES
    ]
    peer = peers.profile_training(task, args.repeats) if peers else None
    rows.append({"stage": "all"} | {key: sum(row[key] or 0 for row in rows) for key in ("products", "others", "floor")})
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {config.train.precision}, a step",
        ["stage", "products, ms", "all else, ms", "floor, ms", "time / floor"],
        [_line(row) for row in rows],
    )
    print(
        f"\nA step under the profiler takes {1e3 * elapsed:.0f} ms. "
        f"The machine: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s."
    )
    if peer:
        print(f"PyTorch: products {1e3 * peer[0]:.0f} ms, all else {1e3 * peer[1]:.0f}.")
    machine = {"flops_per_second": flops, "bytes_per_second": bandwidth}
    return finish_report(report, args, seconds_per_step=elapsed, rates=machine, torch=peer, results=rows)


def _line(row: dict[str, Any]) -> list[Any]:
    spent, floor = row["products"] + row["others"], row["floor"]
    return [row["stage"], 1e3 * row["products"], 1e3 * row["others"], floor and 1e3 * floor, floor and spent / floor]


def rates(dtype: str, repeats: int) -> tuple[float, float]:
    """FLOP/s of the product of two square matrices, and bytes/s of a sum in place over 256 MiB, which no cache holds.

    The best of some runs.
    """
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a, multiply = jnp.ones((side, side), dtype), jax.jit(jnp.matmul)
    x, add = jnp.zeros(2**26, jnp.float32), jax.jit(lambda x: x + 1, donate_argnums=0)

    def add_in_place() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    found = interleaved({"product": lambda: multiply(a, a), "sum": add_in_place}, max(repeats, 3))
    return 2 * side**3 / found["product"]["min_seconds"], 2 * x.nbytes / found["sum"]["min_seconds"]


def profile(run: Run, repeats: int) -> tuple[float, list[list[Event]]]:
    """Seconds of a run, and what ran in so many of them, a list for each thread or stream."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(run())
            elapsed = (time.perf_counter() - started) / repeats
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        return elapsed, [
            [
                Event(str(found["hlo_op"]), event.start_ns, event.duration_ns)
                for event in line.events
                if "hlo_op" in (found := dict(event.stats))
            ]
            for plane in planes
            for line in plane.lines
        ]


def seconds_by_stage(lines: list[list[Event]], program: Program) -> tuple[Counter[str], Counter[str]]:
    """Seconds of each stage in products, and in all else; loops and branches count what isn't told apart inside."""
    stages = {
        one.name: (str(floors.stage_of(one.origin, STAGES)), is_product(one, program))
        for instructions in program.computations.values()
        for one in instructions
    }
    products: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for line in lines:
        for name, nanoseconds in own_times(line):
            stage, product = stages.get(name, (floors.UNSAID, False))
            (products if product else others)[stage] += nanoseconds / 1e9
    return products, others


def own_times(line: list[Event]) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds) of each event of one thread, less those of the events inside of it."""
    open_events: list[Event] = []
    inside: list[float] = []  # of each of them, the time of the events in it

    def close(until: float) -> Iterator[tuple[str, float]]:
        while open_events and open_events[-1].start + open_events[-1].duration <= until:
            event = open_events.pop()
            yield event.name, event.duration - inside.pop()
            if inside:
                inside[-1] += event.duration

    for event in sorted(line, key=lambda event: (event.start, -event.duration)):
        yield from close(event.start)
        open_events.append(event)
        inside.append(0.0)
    yield from close(float("inf"))


def is_product(one: Instruction, program: Program) -> bool:
    """Whether an instruction is, or its fusion holds, a convolution or a matrix product."""
    kinds = {one.kind, *(inner.kind for inner in program.body(one))}
    return not kinds.isdisjoint(PRODUCTS) or one.origin.endswith(NAMED_PRODUCTS)


def floor_by_stage(config: Config, args: Args, flops: float, bandwidth: float) -> Counter[str]:
    """Seconds of each stage at these rates, a step."""
    sizes = floors.Args(batch=args.batch, height=args.height, width=args.width, classes=args.classes)
    network, total = floors.trace(config, sizes), Counter[str]()
    number = jnp.dtype(config.train.precision).itemsize
    for stage, work in floors.network_stages(network, sizes, training=True, number=number):
        total[stage] += work.seconds(flops, bandwidth)
    for stage, work in floors.other_stages(config, network, sizes, training=True):
        total[FLOORS[stage]] += work.seconds(flops, bandwidth)
    return total


if __name__ == "__main__":
    main()
