"""Train configs/small_set.py, the config for small sets, on sets of nine kinds: its AP, and whether a run collapses.

    python -m benchmarks.cases.small_sets --shared ../shared/data --seeds 0 1 2

trains each set once per seed, by `train.py` in a process of its own for about --steps steps, and prints COCO AP of the
evaluation at the end as mean ± standard deviation over the seeds, with the number of runs that collapsed. A finished
run is not repeated, and a stopped run is resumed: --runs is their folder.

Four sets are generated (160×160 images: the demo's, and sets with huge, with tiny and with very many objects); the
others are photographs from the folder --shared, one of them 160 cats of its animals.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.options import Options, read_options
from benchmarks.harness.report import Report, Row, begin_report, finish_report
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

NAME = "small_sets"
COLLAPSE_MESSAGE = "Training has collapsed"  # beginning of the message of training/collapse.py
SQUARE_160 = (
    "--data.train_short_side=160,160",
    "--data.eval_short_side=160",
    "--data.max_long_side=160",
    "--data.buckets=160x160",
)


class DataSet(NamedTuple):
    """A data set, and the options that it needs beside the config."""

    name: str
    about: str
    shapes: ShapesConfig | None = None  # of a generated set; None for a folder of --shared
    options: tuple[str, ...] = ()


class SetResult(NamedTuple):
    """The runs of one set, and their summary."""

    dataset: DataSet
    seeds: dict[str, dict[str, float]]  # result of `train_one` by seed
    collapsed: float  # number of runs
    metrics: dict[str, tuple[float, float]]  # mean and standard deviation, %

    def row(self) -> Row:
        """Return the entry of the report."""
        about = {"set": self.dataset.name, "about": self.dataset.about}
        return {**about, "seeds": self.seeds, "collapsed": self.collapsed, **self.metrics}


def _generated(name: str, about: str, **fields: Any) -> DataSet:
    shapes = ShapesConfig(**{"train_images": 320, "val_images": 100, **fields})
    return DataSet(name, about, shapes, SQUARE_160)


SETS = (
    DataSet("bccd", "205 photographs of blood cells, 3 classes"),
    DataSet("raccoon", "160 photographs, mostly one large object each"),
    DataSet("animals", "1,000 photographs, 5 classes, mostly large objects"),
    DataSet("cats", "the first 160 photographs of animals with cats alone"),
    DataSet("coco355", "178 photographs of COCO, 80 classes"),
    _generated("demo", "the demo's 640 generated images, 4 classes", train_images=640, min_side=24),
    _generated("huge", "one object of 70 to 152 pixels", seed=11, max_objects=1, min_side=70, max_side=0.95),
    _generated("tiny", "up to 6 objects of 6 to 16 pixels", seed=12, max_objects=6, min_side=6, max_side=0.1),
    _generated("many", "up to 40 objects", seed=13, max_objects=40, min_side=8, max_side=0.2, overlap=0.4),
)


@dataclass(frozen=True)
class Args(Options):
    """Options of the table; --repeats and --seed have no effect."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, order and augmentation."""
    sets: tuple[str, ...] = ()
    """Only these sets; empty means all."""
    steps: int = 600
    """Steps per run, rounded to whole epochs; the warm-ups of ATSS and of the learning rate take an eighth each."""
    jobs: int = 1
    """Number of runs at a time."""
    shared: str = "../shared/data"
    """Folder of the photographs: bccd, raccoon, animals and coco355 in COCO format."""
    runs: str = "runs/small_sets"
    """Folder of the runs."""
    made: str = "build/small_sets"
    """Folder of the generated sets."""
    config: str = "configs/small_set.py"
    """The config file."""
    overrides: str = ""
    """Further options of train.py for all runs, separated by blanks."""


def main(argv: Sequence[str] | None = None) -> Report:
    """Train what is missing, print the table and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Train the config for small sets on nine kinds of sets.")
    unknown = set(args.sets) - {dataset.name for dataset in SETS}
    if unknown:
        raise SystemExit(
            f"--sets: {', '.join(sorted(unknown))} must be among {', '.join(dataset.name for dataset in SETS)}."
        )
    sets = [dataset for dataset in SETS if not args.sets or dataset.name in args.sets]
    report = begin_report(NAME, argv, args)
    folders = {dataset.name: make_set(dataset, Path(args.shared), Path(args.made)) for dataset in sets}
    work = [(dataset, seed) for seed in args.seeds for dataset in sets]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(work, pool.map(lambda w: train_one(w[0], folders[w[0].name], w[1], args), work), strict=True))
    results = [
        SetResult(
            dataset,
            {str(seed): found[dataset, seed] for seed in args.seeds},
            sum(found[dataset, seed]["collapsed"] for seed in args.seeds),
            {name: mean_and_deviation([found[dataset, seed][name] for seed in args.seeds]) for name in METRICS},
        )
        for dataset in sets
    ]
    print_table(
        f"{args.config}, about {args.steps} steps, {len(args.seeds)} seeds: mean ± standard deviation",
        ["set", *METRICS, "rescued", "collapsed"],
        [
            [
                result.dataset.name,
                *(f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in result.metrics.values()),
                f"{max(run['rescued'] for run in result.seeds.values()):.1%}",
                f"{result.collapsed:.0f} of {len(args.seeds)}",
            ]
            for result in results
        ],
    )
    return finish_report(report, args, results=[result.row() for result in results])


def make_set(dataset: DataSet, shared: Path, made: Path) -> Path:
    """Return the folder of a set, which is generated if it does not exist."""
    if dataset.shapes is not None:
        write_shapes(made / dataset.name, dataset.shapes)
        return made / dataset.name
    if dataset.name != "cats":
        return shared / dataset.name
    folder = made / "cats"
    for split, count in (("train", 160), ("val", None)):
        tree = json.loads((shared / "animals/annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        kept = images_of_one_class(tree, "cat", count)
        file = folder / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept), encoding="utf-8")
        if not (folder / split).exists():
            os.symlink((shared / "animals" / split).absolute(), folder / split)
    return folder


def images_of_one_class(tree: dict[str, Any], name: str, count: int | None) -> dict[str, Any]:
    """Return the first `count` images (all, if None) of a COCO set that show this class and no other."""
    (category,) = (category for category in tree["categories"] if category["name"] == name)
    classes: dict[int, set[int]] = {}
    for annotation in tree["annotations"]:
        classes.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    images = [image for image in tree["images"] if classes.get(image["id"]) == {category["id"]}][:count]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in tree["annotations"] if annotation["image_id"] in ids]
    return {"images": images, "annotations": annotations, "categories": [category]}


def train_one(dataset: DataSet, data: Path, seed: int, args: Args) -> dict[str, float]:
    """Return the metrics (in %) of one run, which is trained unless it is finished.

    Among them are `collapsed` (0 or 1), and `rescued`, the largest share of objects (0–1) that were rescued between two
    lines of the log.
    """
    folder = Path(args.runs).absolute() / f"{dataset.name}_seed{seed}"
    if final_metrics(folder) is None:
        images = len(json.loads((data / "annotations/instances_train.json").read_text(encoding="utf-8"))["images"])
        epochs = max(1, round(args.steps / (images // 4)))  # the config trains on 4 images per step
        options = [f"--config={args.config}", *dataset_options(str(data)), *dataset.options]
        options += [f"--train.epochs={epochs}", f"--assigner.warmup_epochs={epochs / 8}", "--train.eval_every_epochs=0"]
        options += [f"--optimizer.warmup_steps={args.steps // 8}", "--train.on_collapse=warn"]
        options += [f"--train.seed={seed}", f"--train.workdir={folder}"]
        run_train([sys.executable, "train.py", *replace_options(options, args.overrides.split())], folder)
    metrics = final_metrics(folder)
    assert metrics is not None, f"{folder} has no evaluation"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row.get("kind") == "train"]
    found = {name: 100 * metrics[name] for name in METRICS}
    found["collapsed"] = float(COLLAPSE_MESSAGE in (folder / "train.log").read_text(encoding="utf-8"))
    found["rescued"] = max(row["rescued_objects"] / max(row["objects"], 1) for row in steps)
    print(
        f"{dataset.name}, seed {seed}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True
    )
    return found


if __name__ == "__main__":
    main()
