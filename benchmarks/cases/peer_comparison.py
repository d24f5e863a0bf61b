"""Compare tood_jax with its peers: the plain PyTorch TOOD, eager and compiled, mmdetection and Ultralytics.

    pip install torch==2.13.0                                        # the CPU build is enough
    python -m benchmarks.cases.peer_comparison --batch 2 --height 256 --width 256

All get the same weights, images, objects and precision, on the device that JAX uses: a CPU or a GPU. A row is one
workload of one side; its ratio is the side's median over that of tood_jax: above 1, tood_jax is faster.
compare_torch.py checks that both compute the same. mmdetection's TOOD and Ultralytics' assigner are compared where they
are installed (scripts/peers_env.sh).

Memory is the growth of the process while the work runs for the first time; on a GPU, the allocator's peak.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.memory import measure_first_run
from benchmarks.harness.options import read_options_and_config, with_default_config
from benchmarks.harness.report import Report, Row, begin_report, finish_report
from benchmarks.harness.tables import format_milliseconds, print_table, to_mebibytes
from benchmarks.harness.timing import time_interleaved
from benchmarks.peers.inputs import InputOptions, random_inputs
from benchmarks.peers.load import load_torch_peers
from benchmarks.peers.protocol import STEP_PARTS, Peer, Workload
from benchmarks.peers.tood_jax_peer import ToodJaxPeer

NAME = "peer_comparison"
REFERENCE = ToodJaxPeer()  # the side that the others are compared with
PARTS_TOGETHER = "these four together"


@dataclass(frozen=True)
class Args(InputOptions):
    """Options of the comparison, which uses one device."""

    rows: tuple[str, ...] = ()
    """Only the workloads whose names begin so ("training", "DCN"); none means all."""
    peers: tuple[str, ...] = ()
    """Names of the peers; none means all that are installed."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print the table and write the report."""
    argv = with_default_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Compare tood_jax with the plain PyTorch TOOD.")
    installed = load_torch_peers()
    unknown = set(args.peers) - installed.keys()
    if unknown:
        raise SystemExit(f"--peers: {', '.join(sorted(unknown))} must be among {', '.join(installed)}.")
    report = begin_report(NAME, argv, args, config)
    inputs = random_inputs(args, config)
    sides: list[Peer] = [REFERENCE, *(installed[name] for name in args.peers or installed)]
    offered = [(side, side.workloads(inputs)) for side in sides]
    results = []
    for workload in REFERENCE.workloads(inputs):
        if not args.rows or workload.startswith(args.rows):
            results += compare(workload, offered, args.repeats)
    results += sum_of_parts(results)
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {args.objects} objects, {config.train.precision}",
        ["work", "side", "ms: median (min–max)", "/ ours", "first run, s", "memory, MiB"],
        [
            [
                *(row["row"], row["side"], format_milliseconds(row), row["over_ours"]),
                *(row["first_run_seconds"], to_mebibytes(row["grown_bytes"])),
            ]
            for row in results
        ],
    )
    return finish_report(report, args, results=results)


def compare(name: str, offered: Sequence[tuple[Peer, Mapping[str, Callable[[], Workload]]]], repeats: int) -> list[Row]:
    """Prepare and time one workload of all sides that have it, the reference first."""
    workloads: dict[str, Workload] = {}
    rows: dict[str, Row] = {}
    sides = {side.name: side for side, workloads_of_side in offered if name in workloads_of_side}
    for side, workloads_of_side in offered:
        if side.name in sides:
            started = time.perf_counter()
            workloads[side.name] = workload = workloads_of_side[name]()
            seconds = time.perf_counter() - started
            # Only where a workload is compiled ahead of time does its preparation take a time worth reporting.
            rows[side.name] = {"prepare_seconds": seconds} if workload.program else {}
    for side_name, workload in workloads.items():
        peak_device_bytes = functools.partial(sides[side_name].peak_device_bytes, workload)
        rows[side_name] |= measure_first_run(workload.run, peak_device_bytes)
        if workload.program:
            rows[side_name]["program"] = workload.program.about
    timings = time_interleaved({side_name: workload.run for side_name, workload in workloads.items()}, repeats)
    reference = timings[REFERENCE.name]["median_seconds"]
    return [
        {"row": name, "side": side_name, **rows[side_name], **timing, "over_ours": timing["median_seconds"] / reference}
        for side_name, timing in timings.items()
    ]


def sum_of_parts(results: Sequence[Row]) -> list[Row]:
    """Return the parts of the training step as one row for each side that has them all: the sums of their times."""
    rows: list[dict[str, Any]] = []
    for side in dict.fromkeys(row["side"] for row in results):
        parts = [row for row in results if row["side"] == side and row["row"] in STEP_PARTS]
        if len(parts) == len(STEP_PARTS):
            sums = {f"{key}_seconds": sum(row[f"{key}_seconds"] for row in parts) for key in ("median", "min", "max")}
            first = sum(row["first_run_seconds"] for row in parts)
            rows.append({"row": PARTS_TOGETHER, "side": side, **sums, "first_run_seconds": first, "grown_bytes": None})
    reference = sum(row["median_seconds"] for row in rows if row["side"] == REFERENCE.name)
    return [row | {"over_ours": row["median_seconds"] / reference} for row in rows] if reference else []


if __name__ == "__main__":
    main()
