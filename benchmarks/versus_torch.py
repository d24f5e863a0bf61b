"""Our TOOD against the plain PyTorch one (`tood_jax.torch_reference`), eager and compiled, side by side in one run.

    pip install torch==2.13.0                                        # the CPU build will do
    python -m benchmarks.versus_torch --batch 2 --height 256 --width 256

Both get the same weights, images, objects and precision, on the device that JAX uses: a CPU, or a GPU. A row is one
piece of work; its ratio is the peer's median over ours: above 1, ours is faster. That both compute the same is
compare_torch.py's business. mmdetection's TOOD and Ultralytics' assigner are peers too, where they are installed.

Memory is what the process grows by while the work runs for the first time; on a GPU, what the allocator held most.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from benchmarks import ours, rest
from benchmarks.common import (
    Report,
    begin_report,
    finish_report,
    interleaved,
    load_peers,
    mebi,
    ms,
    print_table,
    read_options_and_config,
    with_config,
)
from benchmarks.first_run import first_run
from benchmarks.task import Run, Sizes, make_task

NAME = "versus_torch"
OURS = "tood_jax"
TOGETHER = "these four together"


@dataclass(frozen=True)
class Args(Sizes):
    """Of the comparison; one device."""

    rows: tuple[str, ...] = ()
    """Which rows, by their beginnings ("training", "DCN"); none means all."""
    peers: tuple[str, ...] = ()
    """Which peers; none means all that are installed."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print, write."""
    argv = with_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Race the plain PyTorch TOOD.")
    peers = load_peers()
    unknown = set(args.peers) - set(peers.installed())
    if unknown:
        raise SystemExit(f"--peers: {', '.join(sorted(unknown))} must be among {', '.join(peers.installed())}.")
    report = begin_report(NAME, argv, args, config)
    task = make_task(args, config)
    others = {peer: peers.runs(peer, task) for peer in args.peers or peers.installed()}
    results = []
    for row, make in ours.runs(task).items():
        if args.rows and not row.startswith(args.rows):
            continue
        started = time.perf_counter()
        run, program = make()
        sides: dict[str, dict[str, Any]] = {OURS: {"prepare_seconds": time.perf_counter() - started}}
        cases: dict[str, Run] = {OURS: run}
        for peer, offers in others.items():
            if row in offers:
                cases[peer], sides[peer] = offers[row](), {}
        for name, run in cases.items():
            sides[name] |= first_run(run, peers.peak_bytes)
        sides[OURS]["program"] = program.about
        if jax.default_backend() == "gpu" and program.about["memory"]:  # PyTorch's allocator knows nothing of ours
            sides[OURS]["grown_bytes"] = program.about["memory"]["total"]
        timings = interleaved(cases, args.repeats)
        for name in cases:
            ratio = timings[name]["median_seconds"] / timings[OURS]["median_seconds"]
            results.append({"row": row, "side": name, **sides[name], **timings[name], "over_ours": ratio})
    results += _together(results)
    print_table(
        f"{config.name}, {args.batch} × {args.height} × {args.width}, {args.objects} objects, {config.train.precision}",
        ["work", "side", "ms: median (min–max)", "/ ours", "first run, s", "memory, MiB"],
        [[r["row"], r["side"], ms(r), r["over_ours"], r["first_run_seconds"], mebi(r["grown_bytes"])] for r in results],
    )
    return finish_report(report, args, results=results)


def _together(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of rest.py as one row, of those sides that have them all: the sums of their medians and extremes."""
    rows = []
    for side in dict.fromkeys(result["side"] for result in results):
        pieces = [result for result in results if result["side"] == side and result["row"] in rest.ROWS]
        if len(pieces) == len(rest.ROWS):
            sums = {f"{key}_seconds": sum(one[f"{key}_seconds"] for one in pieces) for key in ("median", "min", "max")}
            first = sum(one["first_run_seconds"] for one in pieces)
            rows.append({"row": TOGETHER, "side": side, **sums, "first_run_seconds": first, "grown_bytes": None})
    of_ours = sum(row["median_seconds"] for row in rows if row["side"] == OURS)
    return [row | {"over_ours": row["median_seconds"] / of_ours} for row in rows] if of_ours else []


if __name__ == "__main__":
    main()
