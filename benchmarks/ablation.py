"""The paper's ablations on a data set that fits the machine: head × assignment, assigners, α and β, and m.

    python -m benchmarks.ablation --grid head_and_assignment --seeds 0 1 2

trains every row of the grid once a seed, each by `train.py` in a process of its own, and prints COCO AP of the last
evaluation as mean ± standard deviation over the seeds, beside the paper's number (COCO, ResNet-50, 12 epochs). A run
that is done is not run again, and one that was stopped goes on where it stopped: the folder is --runs.

The data set is made first, if it isn't there: 128×128 images of up to 14 overlapping shapes. It is hard where detectors
differ: neighbours hide half of each other, so that scores must tell well-placed boxes from others. Any other COCO
directory of that layout can be named by --data.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import ROOT, Options, Report, begin_report, finish_report, print_table, read_options
from tood_jax.data.synthetic import ShapesConfig, write_shapes

NAME = "ablation"
DENSE_SHAPES = ShapesConfig(
    train_images=800,
    val_images=200,
    height=(128, 128),
    width=(128, 128),
    seed=7,
    max_objects=14,
    overlap=0.5,
    min_side=12,
)
METRICS = ("AP", "AP50", "AP75", "AP90")


class Row(NamedTuple):
    """One setting of a grid."""

    label: str
    config: str  # in configs/ablation
    overrides: tuple[str, ...] = ()
    paper: float | None = None  # its AP in the paper


def _assigner(name: str, *overrides: str, quality: str = "none") -> Row:
    """A row of the assigners' table: the parallel head of `parallel_atss.py` with another assigner."""
    changed = (f"--learning.assigner={name}", f"--head.quality={quality}", *overrides)
    return Row(name, "parallel_atss", changed)


_ONE = ("--loss.box_weight=one",)
_CENTRE = ("--head.point_offset=0.5", "--head.box_coding=exp_distances")
_IOU = ("--detect.quality_fusion=geometric_mean", "--loss.quality_loss_weight=0.5")
GRIDS: dict[str, tuple[Row, ...]] = {
    "head_and_assignment": (
        Row("parallel head, ATSS", "parallel_atss", paper=39.2),
        Row("parallel head, TAL", "parallel_task_aligned", paper=40.3),
        Row("T-head, ATSS", "t_head_atss", paper=41.1),
        Row("T-head, TAL (TOOD)", "t_head_task_aligned", paper=42.5),
    ),
    "assigners": (
        _assigner("max_iou", *_ONE),
        _assigner("center_sampling", *_CENTRE, quality="centerness"),
        _assigner("fovea", *_CENTRE, *_ONE),
        _assigner("atss", quality="centerness"),
        _assigner(
            "paa", "--loss.box_weight=iou", "--learning.positive_iou=0.1", "--learning.negative_iou=0.1", *_IOU,
            quality="iou",
        ),
        _assigner("simota", "--learning.center_radius=2.5", *_CENTRE, *_ONE, *_IOU, quality="iou"),
        _assigner("ota", "--learning.center_radius=2.5", *_CENTRE, *_ONE, *_IOU, quality="iou"),
        Row("task_aligned", "parallel_task_aligned"),
        Row("task_aligned, aligned predictions", "parallel_task_aligned", ("--head.alignment=True",)),
    ),
    "alpha_and_beta": tuple(
        Row(f"α {alpha}, β {beta}", "t_head_task_aligned", (f"--learning.alpha={alpha}", f"--learning.beta={beta}"))
        for alpha in (0.5, 1.0, 1.5)
        for beta in (2.0, 4.0, 6.0, 8.0)
    ),
    "m": tuple(Row(f"m {m}", "t_head_task_aligned", (f"--learning.topk={m}",)) for m in (5, 9, 13, 17, 21)),
}  # fmt: skip


@dataclass(frozen=True)
class Args(Options):
    """Of the ablation; --repeats and --seed mean nothing here."""

    grid: str = "head_and_assignment"
    """One of head_and_assignment, assigners, alpha_and_beta, m."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights, order and augmentation."""
    jobs: int = 1
    """Runs at a time."""
    runs: str = "runs/ablation"
    """Folder of the runs."""
    data: str = "build/dense_shapes"
    """Folder of the data set, a COCO directory as `tood_jax.data.synthetic` writes them; made if it isn't there."""
    rows: tuple[str, ...] = ()
    """Only the rows whose label begins so; empty for all."""
    overrides: str = ""
    """Further options of train.py for every run, separated by blanks: --overrides="--train.epochs=2 …"."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Train what is missing, print, write."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Train and print one of the paper's ablations.")
    if args.grid not in GRIDS:
        raise SystemExit(f"--grid={args.grid} must be one of {', '.join(GRIDS)}.")
    rows = [row for row in GRIDS[args.grid] if not args.rows or row.label.startswith(args.rows)]
    if not rows:
        raise SystemExit(f"--rows: {args.grid} has {'; '.join(row.label for row in GRIDS[args.grid])}.")
    args = dataclasses.replace(
        args, out=args.out or str(ROOT / "benchmarks" / "results" / f"ablation_{args.grid}.json")
    )
    report = begin_report(NAME, argv, args)
    if not (Path(args.data) / "annotations").is_dir() and write_shapes(args.data, DENSE_SHAPES):
        print(f"Made {args.data}.")
    work = [(row, seed) for seed in args.seeds for row in rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(work, pool.map(lambda one: train_one(*one, args), work), strict=True))
    results = [
        {
            **row._asdict(),
            "seeds": {str(seed): found[row, seed] for seed in args.seeds},
            **{name: _mean_and_deviation([found[row, seed][name] for seed in args.seeds]) for name in METRICS},
        }
        for row in rows
    ]
    print_table(
        f"{args.grid}, {len(args.seeds)} seeds: mean ± standard deviation; the paper's AP is COCO's",
        ["setting", *METRICS, "paper's AP"],
        [[r["label"], *(f"{r[name][0]:.1f} ± {r[name][1]:.1f}" for name in METRICS), r["paper"]] for r in results],
    )
    return finish_report(report, args, results=results)


def train_one(row: Row, seed: int, args: Args) -> dict[str, float]:
    """The metrics (in %) of one run, which is trained unless it is done."""
    folder = Path(args.runs).absolute() / args.grid / f"{row.label.replace(' ', '_').replace(',', '')}_seed{seed}"
    if _last_evaluation(folder) is None:
        command = [sys.executable, "train.py", "--config", f"configs/ablation/{row.config}.py", *row.overrides]
        command += [f"--train.seed={seed}", f"--train.workdir={folder}", *_data(args.data), *args.overrides.split()]
        _run(command, folder)
    metrics = _last_evaluation(folder)
    assert metrics is not None, f"{folder} has no evaluation"
    found = {name: 100 * metrics[name] for name in METRICS}
    print(f"{row.label}, seed {seed}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
    return found


def _run(command: list[str], folder: Path) -> None:
    """Run train.py with its output in a file of the run's folder; SystemExit with its last line if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "ab") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False)
    if done.returncode:
        last = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {' '.join(last)}")


def _data(folder: str) -> list[str]:
    """The options of train.py for a data set's folder."""
    root = Path(folder).absolute()
    return [
        option
        for split in ("train", "val")
        for option in (
            f"--data.{split}.images={root / split}",
            f"--data.{split}.annotations={root / 'annotations' / f'instances_{split}.json'}",
        )
    ]


def _last_evaluation(folder: Path) -> dict[str, float] | None:
    """The metrics at the end of a run; None while it isn't finished."""
    records = folder / "metrics.jsonl"
    if not records.is_file():
        return None
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    return next((row for row in reversed(rows) if row.get("kind") == "eval"), None)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1; 0 of a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
