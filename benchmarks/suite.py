"""Run a set of cases: a short set beside the committed figures, or everything that is measured on a GPU.

    python -m benchmarks.suite               # make bench: some minutes on two cores
    python -m benchmarks.suite --keep        # write the figures to benchmarks/results/bench.json, which is committed
    python -m benchmarks.suite --set gpu     # make bench-gpu: writes benchmarks/results/gpu/, one JSON per command

Each command is a case in a process of its own, and one that fails does not stop the rest. A ratio is the committed
median over today's: above 1, today is faster. Only figures of the same machine can be compared.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.harness.options import R50, RESULTS, ROOT, program_name
from benchmarks.harness.tables import print_table

COMMITTED = RESULTS / "bench.json"
X101_DCN = "configs/tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco.py"
FULL_SIZE = "--height 800 --width 1344 --train.precision=bfloat16 --devices 1"
SETS = {  # name: case and its options
    "short": {
        "training": f"train_step --config {R50} --batch 2 --height 128 --width 128",
        "inference": f"inference --config {R50} --batch 2 --height 256 --width 256",
        "assigners": "assigners --objects 10 100 1000 --no_peer",
        "nms": "nms --candidates 1000 5000",
        "convolutions": "convolutions --height 256 --width 256 --no_peer",
    },
    "gpu": {
        **{
            f"training_{images}": f"train_step --config {R50} {FULL_SIZE} --batch {images} --repeats 10"
            for images in (8, 16, 32, 64)
        },
        "training_x101_dcn": f"train_step --config {X101_DCN} {FULL_SIZE} --batch 4 --repeats 10",
        "step_profile": f"step_profile --config {R50} {FULL_SIZE} --batch 16 --peer",
        "inference_32": f"inference --config {R50} {FULL_SIZE} --batch 32 --repeats 20",
        "inference_1": f"inference --config {R50} {FULL_SIZE} --batch 1 --repeats 50",
        "peer_comparison": f"peer_comparison --config {R50} --batch 16 --height 800 --width 1344 "
        "--train.precision=bfloat16",
        "assigners": "assigners --batch 16",
        "nms": "nms --candidates 1000 5000 20000",
        "deformable_convolution": "deformable_convolution --dtype bfloat16 --batch 8",
        "deformable_convolution_64groups": "deformable_convolution --dtype bfloat16 --batch 8 --channels 1024 "
        "--groups 64 --formulations per_tap im2col",
        "convolutions": "convolutions --batch 16 --height 800 --width 1344 --dtype bfloat16",
        "alternative_formulations": "alternative_formulations --batch 16",
        "training_memory": f"training_memory --config {R50} --batch 8 --height 800 --width 1344",
    },
}
ROW_KEYS = (  # of a row in a report, which together name its figure
    *("phase", "case", "assigner", "objects", "candidates", "convolution", "what", "row", "side", "work", "way"),
    *("formulation", "pass"),
)
Figures = dict[str, float]  # median seconds by name


@dataclass(frozen=True)
class Args:
    """Options of the suite."""

    set: Literal["short", "gpu"] = "short"
    """Set of commands."""
    only: tuple[str, ...] = ()
    """Names of the commands to run; none means all."""
    extra: str = ""
    """Options added to each command, "--repeats 2" for instance."""
    keep: bool = False
    """Write the figures of the short set to benchmarks/results/bench.json."""
    folder: Path | None = None
    """Folder of the reports; by default build/bench for the short set, benchmarks/results/gpu for the other."""


def main(argv: Sequence[str] | None = None) -> dict[str, Figures]:
    """Run the commands and print a table; exit status 1 if one of them failed."""
    args = tyro.cli(Args, args=argv, prog="python -m benchmarks.suite", description=__doc__, use_underscores=True)
    unknown = set(args.only) - SETS[args.set].keys()
    if unknown:
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} must be among {', '.join(SETS[args.set])}.")
    folder = args.folder or (RESULTS / "gpu" if args.set == "gpu" else ROOT / "build" / "bench")
    found: dict[str, Figures] = {}
    failed, machine, date = [], None, None
    for name, command in SETS[args.set].items():
        if args.only and name not in args.only:
            continue
        case, *words = command.split()
        file = folder / f"{name}.json"
        words = [*program_name(case).split()[1:], *words, *args.extra.split(), "--out", str(file)]
        if subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
            failed.append(name)
            continue
        report = json.loads(file.read_text())
        found[name], machine, date = dict(figures(report)), report["machine"]["cpu"], report["date"]
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() and args.set == "short" else {}
    _print_figures(found, committed, machine)
    if args.keep and args.set == "short" and found:
        COMMITTED.write_text(json.dumps({"date": date, "machine": machine, "seconds": found}, indent=1) + "\n")
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")
    return found


def _print_figures(found: dict[str, Figures], committed: dict[str, Any], machine: str | None) -> None:
    before = committed.get("seconds", {})
    rows = []
    for name, of_command in found.items():
        for what, seconds in of_command.items():
            old = before.get(name, {}).get(what)
            rows.append([name, what, seconds * 1e3, old and old * 1e3, old and old / seconds])
    of = f", committed {committed['date'][:10]} on {committed['machine']}" if committed else ""
    print_table(f"Medians on {machine}{of}", ["benchmark", "what", "ms", "committed, ms", "ratio"], rows)


def figures(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, median seconds) of each timing in a report's rows."""
    for row in report["results"]:
        which = ", ".join(str(row[key]) for key in ROW_KEYS if key in row)
        if "median_seconds" in row:
            yield which, row["median_seconds"]
        for side, timing in row.items():
            if isinstance(timing, dict) and "median_seconds" in timing:
                yield f"{which}, {side}", timing["median_seconds"]


if __name__ == "__main__":
    main()
