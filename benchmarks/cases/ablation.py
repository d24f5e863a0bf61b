"""Train the paper's ablations on a small data set: head × assignment, assigners, α and β, and m.

    python -m benchmarks.cases.ablation --grid head_and_assignment --seeds 0 1 2

trains each row of the grid once per seed, by `train.py` in a process of its own, and prints COCO AP of the last
evaluation as mean ± standard deviation over the seeds, beside the paper's number (COCO, ResNet-50, 12 epochs). A
finished run is not repeated, and a stopped run is resumed: --runs is their folder.

The data set is generated first, if it does not exist: 128×128 images of up to 14 overlapping shapes. Neighbours hide
half of each other, so that scores must distinguish well-placed boxes from others. --data names another COCO directory
of that layout.
"""

import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.options import RESULTS, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from benchmarks.harness.training_runs import (
    METRICS,
    dataset_options,
    final_metrics,
    mean_and_deviation,
    replace_options,
    run_train,
)
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


class Row(NamedTuple):
    """One setting of a grid."""

    label: str
    config: str  # in configs/ablation
    overrides: tuple[str, ...] = ()
    paper: float | None = None  # its AP in the paper


def _assigner(name: str, *overrides: str, quality: str = "none") -> Row:
    """Return a row of the assigners' grid: the parallel head of `parallel_atss.py` with another assigner."""
    changed = (f"--assigner.kind={name}", f"--head.quality={quality}", *overrides)
    return Row(name, "parallel_atss", changed)


_WEIGHT_ONE = ("--loss.box_weight=one",)
_CENTERS = ("--head.point_offset=0.5", "--head.box_coding=exp_distances")
_IOU = ("--detect.quality_fusion=geometric_mean", "--loss.quality_loss_weight=0.5")
GRIDS: dict[str, tuple[Row, ...]] = {
    "head_and_assignment": (
        Row("parallel head, ATSS", "parallel_atss", paper=39.2),
        Row("parallel head, TAL", "parallel_task_aligned", paper=40.3),
        Row("T-head, ATSS", "t_head_atss", paper=41.1),
        Row("T-head, TAL (TOOD)", "t_head_task_aligned", paper=42.5),
    ),
    "assigners": (
        _assigner("max_iou", *_WEIGHT_ONE),
        _assigner("center_sampling", *_CENTERS, quality="centerness"),
        _assigner("fovea", *_CENTERS, *_WEIGHT_ONE),
        _assigner("atss", quality="centerness"),
        _assigner(
            "paa", "--loss.box_weight=iou", "--assigner.positive_iou=0.1", "--assigner.negative_iou=0.1", *_IOU,
            quality="iou",
        ),
        _assigner("simota", "--assigner.center_radius=2.5", *_CENTERS, *_WEIGHT_ONE, *_IOU, quality="iou"),
        _assigner("ota", "--assigner.center_radius=2.5", *_CENTERS, *_WEIGHT_ONE, *_IOU, quality="iou"),
        Row("task_aligned", "parallel_task_aligned"),
        Row("task_aligned, aligned predictions", "parallel_task_aligned", ("--head.alignment=True",)),
    ),
    "alpha_and_beta": tuple(
        Row(f"α {alpha}, β {beta}", "t_head_task_aligned", (f"--assigner.alpha={alpha}", f"--assigner.beta={beta}"))
        for alpha in (0.5, 1.0, 1.5)
        for beta in (2.0, 4.0, 6.0, 8.0)
    ),
    "m": tuple(Row(f"m {m}", "t_head_task_aligned", (f"--assigner.topk={m}",)) for m in (5, 9, 13, 17, 21)),
}  # fmt: skip


@dataclass(frozen=True)
class Args(Options):
    """Options of the ablation; --repeats and --seed have no effect."""

    grid: str = "head_and_assignment"
    """One of head_and_assignment, assigners, alpha_and_beta, m."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, order and augmentation."""
    jobs: int = 1
    """Number of runs at a time."""
    runs: str = "runs/ablation"
    """Folder of the runs."""
    data: str = "build/dense_shapes"
    """Folder of the data set, a COCO directory as `tood_jax.data.synthetic` writes it; generated if missing."""
    rows: tuple[str, ...] = ()
    """Only the rows whose labels begin so; empty means all."""
    overrides: str = ""
    """Further options of train.py for all runs, separated by blanks: --overrides="--train.epochs=2 …"."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Train what is missing, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Train and print one of the paper's ablations.")
    if args.grid not in GRIDS:
        raise SystemExit(f"--grid={args.grid} must be one of {', '.join(GRIDS)}.")
    rows = [row for row in GRIDS[args.grid] if not args.rows or row.label.startswith(args.rows)]
    if not rows:
        raise SystemExit(f"--rows: {args.grid} has {'; '.join(row.label for row in GRIDS[args.grid])}.")
    args = dataclasses.replace(args, out=args.out or str(RESULTS / f"{NAME}_{args.grid}.json"))
    report = begin_report(NAME, argv, args)
    if not (Path(args.data) / "annotations").is_dir() and write_shapes(args.data, DENSE_SHAPES):
        print(f"Generated {args.data}.")
    work = [(row, seed) for seed in args.seeds for row in rows]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(work, pool.map(lambda run: train_one(run[0], run[1], args), work), strict=True))
    results = [
        {
            **row._asdict(),
            "seeds": {str(seed): found[row, seed] for seed in args.seeds},
            **{name: mean_and_deviation([found[row, seed][name] for seed in args.seeds]) for name in METRICS},
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
    """Return the metrics (in %) of one run, which is trained unless it is finished."""
    folder = Path(args.runs).absolute() / args.grid / f"{row.label.replace(' ', '_').replace(',', '')}_seed{seed}"
    if final_metrics(folder) is None:
        options = [f"--config=configs/ablation/{row.config}.py", *row.overrides, *dataset_options(args.data)]
        options += [f"--train.seed={seed}", f"--train.workdir={folder}"]
        run_train([sys.executable, "train.py", *replace_options(options, args.overrides.split())], folder)
    metrics = final_metrics(folder)
    assert metrics is not None, f"{folder} has no evaluation"
    found = {name: 100 * metrics[name] for name in METRICS}
    print(f"{row.label}, seed {seed}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
