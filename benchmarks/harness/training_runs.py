"""Training runs behind a table: start train.py in a process of its own, and read the results of the run."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.options import ROOT

METRICS = ("AP", "AP50", "AP75", "AP90")


def run_train(command: list[str], folder: Path) -> None:
    """Run train.py with its output in output.txt of the run's folder.

    Raises:
        SystemExit: the run failed; the message has its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "output.txt", "ab") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False)
    if done.returncode:
        last = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {' '.join(last)}")


def dataset_options(folder: str) -> list[str]:
    """Return the options of train.py for the folder of a data set."""
    root = Path(folder).absolute()
    return [
        option
        for split in ("train", "val")
        for option in (
            f"--data.{split}.images={root / split}",
            f"--data.{split}.annotations={root / 'annotations' / f'instances_{split}.json'}",
        )
    ]


def replace_options(options: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the options of a command, each replaced by the override of the same name: train.py takes each once.

    Args:
        options: `--name=value`, or `--name` and its values.
        overrides: in the same form.
    """
    chosen: dict[str, list[str]] = {}
    for word in (*options, *overrides):
        if word.startswith("--"):
            own = chosen[word.partition("=")[0].replace("-", "_")] = []
        own.append(word)
    return [word for words in chosen.values() for word in words]


def final_metrics(folder: Path) -> dict[str, float] | None:
    """Return the metrics at the end of a run; None if it is not finished."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return next((row for row in reversed(rows) if row.get("kind") == "eval"), None)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n − 1; 0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
