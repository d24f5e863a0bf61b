"""tood compare: whether the detections of one run are better than those of another."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.cli.command_line import parse_without_config
from tood_jax.cli.common import config_of, parse_step, report_errors
from tood_jax.cli.tables import format_table
from tood_jax.config import ConfigError
from tood_jax.data.dataset import Dataset
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import parse_coco, read_coco_json
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.paths import as_path, read_bytes
from tood_jax.evaluation.comparison import Difference, compare_results
from tood_jax.evaluation.matches import has_report_packages
from tood_jax.untrusted.bounded_json import JsonError, as_number, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.untrusted.terminal import print_line, print_warning

PROG = "tood compare"
_FORMER_USE = "; the comparison with PyTorch is tood compare-torch."
_HEADER = ("", "A", "B", "B - A", "95 % interval", "B is")


@dataclass(frozen=True)
class Args:
    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """A and B: each the folder of a run that was evaluated by `tood eval`, or a file of COCO results."""
    step: str = "best"
    """Checkpoint of both runs: best (by train.best), latest, or the number of a saved step."""
    annotations: str = ""
    """COCO instances JSON of the images; empty means the val split of the run."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the comparison."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Compare two runs, or two files of COCO results: is B better than A, overall and for each class?"
    if any(word.startswith("--config") for word in argv):
        print_warning(f"{prog}: give two runs or two files of COCO results{_FORMER_USE}")
        raise SystemExit(2)
    args = parse_without_config(Args, argv, prog=prog, description=description)
    with report_errors(prog):
        if len(args.sources) != 2:
            raise ConfigError(f"name A and B, two runs or two files of COCO results{_FORMER_USE}")
        if not has_report_packages():
            raise ConfigError("the comparison needs the packages of tood_jax[report]: pip install hotcoco matplotlib")
        differences = compare(args)
    for text in describe(differences, args.sources):
        print_line(text)


def compare(args: Args) -> list[Difference]:
    """Return the differences between the two sources.

    Raises:
        ConfigError: the sources can't be compared.
        CheckpointError: a run has no such checkpoint.
        DataError: a file is invalid.
    """
    files, datasets = [], []
    for source in args.sources:
        if Path(source).is_dir():
            checkpoint = open_checkpoint(source, parse_step(args.step))
            files.append(checkpoint.folder.parent.parent / f"{checkpoint.step}.results.json")
            if not files[-1].exists():
                raise ConfigError(
                    f"there is no {printable(files[-1])}: run tood eval --checkpoint {printable(source)}."
                )
            if not args.annotations:
                val = config_of(checkpoint.about.get("config"), checkpoint.folder, PROG).data.val
                datasets.append(load_dataset(val, "skip", for_evaluation=True))
        elif Path(source).exists():
            files.append(Path(source))
        else:
            raise ConfigError(f"there is no run and no file {printable(source)}.")
    if args.annotations:
        datasets = [_read_annotations(args.annotations)]
    if not datasets:
        raise ConfigError("name the annotation file of the two files of results: --annotations FILE.")
    if any(one.fingerprint != datasets[0].fingerprint for one in datasets):
        raise ConfigError(
            "the two runs have different val splits: evaluate both on the same one, and name it by --annotations."
        )
    if not datasets[0].has_annotations:
        raise ConfigError("the annotation file has no list 'annotations', so there is no AP to compare.")
    results = [_read_results(file, datasets[0]) for file in files]
    return compare_results(datasets[0].ground_truth(), *results)


def _read_annotations(file: str) -> Dataset:
    return parse_coco(read_coco_json(read_bytes(as_path(file)), file), file, lambda names: [as_path(n) for n in names])


def _read_results(file: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Return the COCO results in a file. Raises DataError."""
    try:
        rows = parse_json(read_regular(file))
    except JsonError as error:
        raise DataError(f"{printable(file)} {error}.") from None
    if not isinstance(rows, list):
        raise DataError(f"{printable(file)} is no list of detections: give COCO results, as tood eval writes them.")
    images, categories = {image.id for image in dataset.images}, {info.id for info in dataset.classes}
    for number, row in enumerate(rows):
        if problem := _problem(row, images, categories):
            raise DataError(f"{printable(file)}: detection {number} {problem}.")
    return rows


def _problem(row: Any, images: set[Any], categories: set[int]) -> str:
    """Return what is wrong with a detection; "" if nothing is."""
    if not isinstance(row, dict):
        return "is no object"
    box, image, category = row.get("bbox"), row.get("image_id"), row.get("category_id")
    if not isinstance(box, list) or len(box) != 4 or any(as_number(x) is None for x in box):
        return "has no 'bbox' of four numbers"
    if as_number(row.get("score")) is None:
        return "has no number 'score'"
    if isinstance(image, list | dict) or image not in images:
        return f"is of image {printable(image, 60)}, which the annotation file does not have"
    if isinstance(category, list | dict) or category not in categories:
        return f"is of category {printable(category, 60)}, which the annotation file does not have"
    return ""


def describe(differences: Sequence[Difference], sources: Sequence[str]) -> list[str]:
    """Return the table and the conclusion, in percent."""
    rows = [
        (
            printable(one.name, 40),
            *(f"{100 * value:.1f}" for value in (one.first, one.second)),
            f"{100 * (one.second - one.first):+.1f}",
            f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]",
            one.verdict,
        )
        if one.first == one.first
        else (printable(one.name, 40), *["n/a"] * 4, "–")
        for one in differences
    ]
    overall = differences[0]
    conclusion = {
        "better": "B is better than A",
        "worse": "B is worse than A",
        "not clear": "It is not clear which is better",
    }[overall.verdict]
    return [
        f"A: {printable(sources[0])}\nB: {printable(sources[1])}\n",
        format_table(_HEADER, rows, right=_HEADER[1:5]),
        f"\n{conclusion}: 95 % of the bootstrap samples of the images have an AP of B - A between "
        f"{100 * overall.low:+.1f} and {100 * overall.high:+.1f}. Of many classes, one in twenty seems to differ by "
        "chance.",
    ]
