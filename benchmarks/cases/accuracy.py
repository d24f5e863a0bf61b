"""Train the same detector by tood_jax and by mmdetection on photographs: the AP of both, with its spread over seeds.

    scripts/peers_env.sh
    python -m benchmarks.cases.accuracy --shared ../shared

For each setting and seed both sides start from the same weights and train on the same images in the same order, at the
same sizes and with the same flips, with the same batch size, steps, optimizer and learning rates, in float32 and
without a moving average. Each side reads, resizes and pads the images and computes assignment, losses and detections by
its own code. One evaluation, that of tood_jax, measures the detections of both.

Before it trains, the first batch and its losses are compared (`--check_only` ends there). A finished run is not
repeated, and a stopped one is resumed: --runs is the folder of all. A short run that proves both sides from end to end:

    python -m benchmarks.cases.accuracy --settings tood_small --seeds 0 --images 40 --epochs 6 --short_side 96 \\
        --runs runs/accuracy_short --out runs/accuracy_short/report.json
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness.accuracy_settings import MMDETECTION, OURS, SETTINGS, Setting, shortened
from benchmarks.harness.options import ROOT, Options, read_options
from benchmarks.harness.report import Report, begin_report, finish_report
from benchmarks.harness.tables import print_table
from benchmarks.harness.training_runs import run_train, seed_difference, summarize_seeds
from benchmarks.peers.accuracy_check import (
    MMDETECTION_PARTS,
    PHASES,
    CheckedValue,
    compare_first_batch,
    first_batch,
    worst_difference,
)
from benchmarks.peers.accuracy_job import TrainingJob, planned_rows
from tood_jax.config import Config, SplitConfig, save_config, to_dict
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.sampler import train_sampler
from tood_jax.data.transforms import resized_size
from tood_jax.evaluation.coco_ap import evaluate
from tood_jax.files import write_atomically
from tood_jax.geometry.locations import IMAGE_MULTIPLE
from tood_jax.models.build import build_model
from tood_jax.training.state import init_variables
from tood_jax.types import Tree
from tood_jax.weights.files import read_weights, write_weights
from tood_jax.weights.load import initial_weights
from tood_jax.weights.mapping import export_state_dict, import_state_dict

NAME = "accuracy"
METRICS = ("AP", "AP50", "AP75")
CHECK_TOLERANCE = 1e-3  # relative, of each loss of the first batch
CURVE = ("loss", "loss_cls", "loss_box", "loss_quality", "grad_norm", "learning_rate")
OUR_NAMES = {theirs: f"loss_{part}" for part, theirs in MMDETECTION_PARTS.items()}
DETECTIONS = "detections.bbox.json"  # written by mmdetection


@dataclass(frozen=True)
class Args(Options):
    """Options of the comparison; --repeats and --seed have no effect."""

    settings: tuple[str, ...] = ()
    """Only these settings; empty means all."""
    sides: tuple[str, ...] = (OURS, MMDETECTION)
    """Only these sides, which are trained in this order."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights, order and flips; settings with ResNet-50 use the first alone."""
    epochs: int = 0
    """Epochs instead of the setting's; warm-ups and steps of the learning rate shrink with them."""
    images: int = 0
    """Only the first images of each split; 0 means all."""
    short_side: int = 0
    """Short side in pixels instead of the setting's; the largest long side changes with it."""
    jobs: int = 1
    """Number of runs at a time."""
    check_only: bool = False
    """Compare the first batch of each setting, and do not train."""
    torch_threads: int = 1
    """Threads of PyTorch per run; 0 means its default, one for each core, which is slow beside other work."""
    shared: str = "../shared"
    """Folder with data/bccd, data/animals and weights."""
    peer_python: str = ".venv-peers/bin/python"
    """Python of the environment of scripts/peers_env.sh."""
    runs: str = "runs/accuracy"
    """Folder of the runs."""


class Run(NamedTuple):
    """One seed of a setting, prepared for both sides."""

    setting: Setting
    seed: int
    config: Config
    folder: Path


def main(argv: Sequence[str] | None = None) -> Report:
    """Prepare, check, train what is missing, print the tables and write the report."""
    argv = sys.argv[1:] if argv is None else argv
    args = read_options(Args, argv, NAME, "Compare the accuracy of training with mmdetection.")
    _check_names("--settings", args.settings, [setting.name for setting in SETTINGS])
    _check_names("--sides", args.sides, [OURS, MMDETECTION])
    if not args.seeds:
        raise SystemExit("--seeds must have at least one number.")
    settings = [setting for setting in SETTINGS if not args.settings or setting.name in args.settings]
    report = begin_report(NAME, argv, args)
    runs = [prepare(setting, seed, args) for setting in settings for seed in args.seeds[: setting.seeds]]
    checks = {}
    for run in runs:
        if run.seed == args.seeds[0] and {*run.setting.sides} == {*args.sides} == {OURS, MMDETECTION}:
            checks[run.setting.name] = [value._asdict() for value in check(run, args)]
    work = [(run, side) for run in runs for side in args.sides if side in run.setting.sides]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = [] if args.check_only else list(pool.map(lambda one: train_side(one[0], one[1], args), work))
    for setting in settings if results else ():
        _print_setting(setting, [result for result in results if result["setting"] == setting.name])
    return finish_report(report, args, checks=checks, results=results)


def _check_names(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = set(given) - set(known)
    if unknown:
        raise SystemExit(f"{option}: {', '.join(sorted(unknown))} must be among {', '.join(known)}.")


def prepare(setting: Setting, seed: int, args: Args) -> Run:
    """Write config, initial weights and job of a run into its folder, unless they are there.

    Raises:
        SystemExit: the folder has a run with other options.
    """
    folder = (Path(args.runs) / f"{setting.name}_seed{seed}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    data = (Path(args.shared) / "data" / setting.data).absolute()
    splits = {name: make_split(data, name, args.images, folder) for name in ("train", "val")}
    config = run_config(setting, seed, splits, args)
    train_set = filter_for_training(load_dataset(config.data.train), config.data)
    val_set = load_dataset(config.data.val)
    config = replace(config, data=replace(config.data, buckets=all_canvases([train_set, val_set], config)))
    weights = folder / "initial.safetensors"
    job = make_job(config, train_set, weights)
    file = folder / "job.json"
    if file.exists() and file.read_text(encoding="utf-8") != job.to_json():
        raise SystemExit(f"{folder} has a run with other options: choose another folder by --runs.")
    if not weights.exists():
        names = class_names(train_set.classes)
        write_weights(weights, export_state_dict(_initial_variables(setting, config, names, args), config), names, {})
    save_config(config, folder / "config.json")
    file.write_text(job.to_json(), encoding="utf-8")
    return Run(setting, seed, config, folder)


def make_split(data: Path, name: str, images: int, folder: Path) -> SplitConfig:
    """Return a split of a data set; with `images` above 0 only its first images, in a new annotation file."""
    file = data / "annotations" / f"instances_{name}.json"
    if images:
        tree = json.loads(file.read_text(encoding="utf-8"))
        file = folder / file.name
        file.write_text(json.dumps(first_images(tree, images)), encoding="utf-8")
    return SplitConfig(images=str(data / name), annotations=str(file))


def first_images(tree: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a COCO dictionary with its first images and their annotations only."""
    images = tree["images"][:count]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in tree["annotations"] if annotation["image_id"] in ids]
    return {**tree, "images": images, "annotations": annotations}


def run_config(setting: Setting, seed: int, splits: dict[str, SplitConfig], args: Args) -> Config:
    """Return the config of a run, without its canvases."""
    config = setting.config()
    side = args.short_side or setting.short_side
    data = replace(
        config.data,
        train=splits["train"],
        val=splits["val"],
        train_short_side=(side, side),
        eval_short_side=side,
        max_long_side=round(config.data.max_long_side * side / setting.short_side),
    )
    train = replace(config.train, seed=seed, eval_every_epochs=0, log_every_steps=10, on_collapse="warn")
    config = replace(config, name=setting.name, data=data, train=train)
    return shortened(config, args.epochs) if args.epochs else config


def all_canvases(sets: Sequence[Dataset], config: Config) -> tuple[tuple[int, int], ...]:
    """Return a canvas for every height and width of the padded images, so that both sides pad each batch equally."""
    sizes = [
        resized_size(image.height, image.width, config.data.eval_short_side, config.data.max_long_side)
        for dataset in sets
        for image in dataset.images
    ]
    heights, widths = ({-(-size[axis] // IMAGE_MULTIPLE) * IMAGE_MULTIPLE for size in sizes} for axis in (0, 1))
    return tuple((height, width) for height in sorted(heights) for width in sorted(widths))


def make_job(config: Config, train_set: Dataset, weights: Path) -> TrainingJob:
    """Return what mmdetection needs to repeat a run."""
    sampler = train_sampler(train_set, config.data, config.train.batch_size, config.train.seed, config.train.epochs)
    ids = tuple(image.id for image in train_set.images)
    steps = sampler.epoch_steps * config.train.epochs
    batches = tuple(planned_rows(sampler.batch(step), ids) for step in range(steps))
    return TrainingJob(to_dict(config), class_names(train_set.classes), str(weights), sampler.epoch_steps, batches)


def _initial_variables(setting: Setting, config: Config, names: tuple[str, ...], args: Args) -> Tree:
    params, stats = init_variables(build_model(config, len(names)), config.train.seed)
    if setting.pretrained:
        weights = (Path(args.shared) / "weights").absolute()
        backbone = (Path(args.runs) / "resnet50.safetensors").absolute()
        subprocess.run([sys.executable, str(weights / "load_resnet50.py"), str(backbone)], check=True)
        params, stats = initial_weights(str(backbone), config, partial(build_model, config), names, print)(
            params, stats
        )
    return {"params": params, "batch_stats": stats}


def check(run: Run, args: Args) -> list[CheckedValue]:
    """Return the first batch of both sides compared, and print it; a comparison that exists is read.

    Raises:
        SystemExit: a loss differs by more than `CHECK_TOLERANCE`, or the batches have different sizes or objects.
    """
    file = run.folder / "check.json"
    if not file.exists():
        write_atomically(file, json.dumps(_compare_first_batch(run, args)).encode())
    values = [CheckedValue(*value) for value in json.loads(file.read_text(encoding="utf-8"))]
    print_table(
        f"First batch of {run.setting.name}, equal weights",
        ["", OURS, MMDETECTION, "difference"],
        [[value.what, f"{value.ours:.6g}", f"{value.mmdetection:.6g}", f"{value.difference:.1e}"] for value in values],
    )
    worst = worst_difference(values)
    if not worst <= CHECK_TOLERANCE:
        raise SystemExit(f"{run.setting.name}: the first batch differs by {worst:.1e}, more than {CHECK_TOLERANCE}.")
    return values


def _compare_first_batch(run: Run, args: Args) -> list[CheckedValue]:
    _run_mmdetection(run, run.folder, args, "--check")
    train_set = filter_for_training(load_dataset(run.config.data.train), run.config.data)
    variables = import_state_dict(read_weights(run.folder / "initial.safetensors").tensors, run.config)
    phases = PHASES if run.config.assigner.kind == "task_aligned" else PHASES[1:]
    with np.load(run.folder / "check.npz") as mmdetection:
        return compare_first_batch(first_batch(run.config, train_set, variables), mmdetection, phases)


def train_side(run: Run, side: str, args: Args) -> dict[str, Any]:
    """Return metrics (in %) and curve of one run by one side, which is trained unless it is finished.

    The weights of tood_jax are also tested by mmdetection (`tested_by_mmdetection`), if both sides take part.
    """
    folder = run.folder / side
    file = folder / "result.json"
    if not file.exists():
        folder.mkdir(exist_ok=True)
        detections, curve = SIDES[side](run, folder, args)
        result = {
            "setting": run.setting.name,
            "side": side,
            "seed": run.seed,
            "metrics": metrics_of(detections, run.config),
            "curve": curve,
        }
        if side == OURS and MMDETECTION in args.sides and MMDETECTION in run.setting.sides:
            result["tested_by_mmdetection"] = metrics_of(_detect_by_mmdetection(run, folder, args), run.config)
        write_atomically(file, json.dumps(result).encode())
    result = json.loads(file.read_text(encoding="utf-8"))
    shown = ", ".join(f"{name} {result['metrics'][name]:.2f}" for name in METRICS)
    print(f"{run.setting.name}, {side}, seed {run.seed}: {shown}", flush=True)
    return result


def metrics_of(detections: Path, config: Config) -> dict[str, float | None]:
    """Return COCO's metrics in % of a file of COCO results on the val split; None without such objects."""
    truth = load_dataset(config.data.val).ground_truth()
    metrics = evaluate(truth, json.loads(detections.read_text(encoding="utf-8"))).numbers()
    return {name: None if np.isnan(value) else 100 * value for name, value in metrics.items()}


def _train_ours(run: Run, folder: Path, args: Args) -> tuple[Path, list[dict[str, float]]]:
    """Train and detect by train.py and eval.py; return the file of the detections and the curve."""
    work, detections = folder / "run", folder / "detections.json"
    options = [f"--config={run.folder / 'config.json'}", f"--train.workdir={work}"]
    options += [f"--init_from={run.folder / 'initial.safetensors'}"]
    run_train([sys.executable, "train.py", *options], folder)
    run_train([sys.executable, "eval.py", f"--checkpoint={work}", "--step=latest", f"--out={detections}"], folder)
    rows = map(json.loads, (work / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    curve = [row for row in rows if row.get("kind") == "train"]
    return detections, [{"step": row["step"], **{name: row[name] for name in CURVE if name in row}} for row in curve]


def _train_mmdetection(run: Run, folder: Path, args: Args) -> tuple[Path, list[dict[str, float]]]:
    """Train and detect by mmdetection; return the file of the detections and the curve."""
    _run_mmdetection(run, folder, args)
    rows = map(json.loads, (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines())
    return folder / DETECTIONS, windows(rows, run.config.train.log_every_steps)


def _detect_by_mmdetection(run: Run, folder: Path, args: Args) -> Path:
    """Detect by mmdetection with the trained weights of tood_jax; return the file of the detections."""
    weights, tested = folder / "trained.safetensors", folder / "tested_by_mmdetection"
    tested.mkdir(exist_ok=True)
    options = ["--weights", str(folder / "run"), "--step=latest", "--names=mmdetection", "--overwrite"]
    run_train([sys.executable, "-m", "tood_jax.cli.convert", *options, "--out", str(weights)], tested)
    _run_mmdetection(run, tested, args, "--detect", str(weights))
    return tested / DETECTIONS


SIDES: dict[str, Callable[[Run, Path, Args], tuple[Path, list[dict[str, float]]]]] = {
    OURS: _train_ours,
    MMDETECTION: _train_mmdetection,
}


def _run_mmdetection(run: Run, folder: Path, args: Args, *options: str) -> None:
    python = ROOT / args.peer_python  # an absolute path stays as it is
    if not python.exists():
        raise SystemExit(f"There is no {python}: run scripts/peers_env.sh, or name its Python by --peer_python.")
    module = "benchmarks.peers.mmdetection_accuracy"
    arguments = [str(run.folder / "job.json"), str(folder), f"--threads={args.torch_threads}", *options]
    run_train([str(python), "-m", module, *arguments], folder)


def windows(rows: Iterable[dict[str, float]], size: int) -> list[dict[str, float]]:
    """Return the means of every `size` steps under the names of tood_jax, as its log has them.

    Args:
        rows: of mmdetection, by step 1, 2, …; of a step that occurs twice (after resuming) the last counts.
    """
    steps = {int(row["step"]): {OUR_NAMES.get(name, name): row[name] for name in row} for row in rows}
    ordered = [steps[step] for step in sorted(steps)]
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [
        {"step": part[-1]["step"]}
        | {name: float(np.mean([row[name] for row in part])) for name in CURVE if name in part[0]}
        for part in parts
    ]


def _print_setting(setting: Setting, results: list[dict[str, Any]]) -> None:
    sides = [side for side in (OURS, MMDETECTION) if any(result["side"] == side for result in results)]
    two = ["difference", "tood_jax, tested by mmdetection"] if len(sides) == 2 else []
    print_table(
        f"{setting.name}: {setting.about}; {setting.data}; mean ± standard deviation over seeds (standard error)",
        ["", *sides, *two],
        table_rows(results, sides),
    )


def table_rows(results: Sequence[dict[str, Any]], sides: Sequence[str]) -> list[list[str]]:
    """Return a row for each metric: its name and the summary of each side.

    With two sides also their difference, and the summary of tood_jax's weights tested by mmdetection ("–" if none).
    """
    rows = []
    for name in METRICS:
        summaries = [
            summarize_seeds([result["metrics"][name] for result in results if result["side"] == side]) for side in sides
        ]
        row = [name, *map(str, summaries)]
        if len(summaries) == 2:
            tested = [found["tested_by_mmdetection"][name] for found in results if "tested_by_mmdetection" in found]
            row += [str(seed_difference(*summaries)), str(summarize_seeds(tested)) if tested else "–"]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
