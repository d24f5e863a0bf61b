"""Training runs behind a table: start train.py in a process of its own, and read the results of the run."""

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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


class SeedSummary(NamedTuple):
    """A metric over the seeds of one side."""

    mean: float
    deviation: float | None  # standard deviation (n − 1); None for a single seed
    error: float | None  # standard error of the mean
    seeds: int

    def __str__(self) -> str:
        if self.deviation is None or self.error is None:
            return f"{self.mean:.2f} (one seed)"
        return f"{self.mean:.2f} ± {self.deviation:.2f} (error {self.error:.2f})"


class Difference(NamedTuple):
    """The difference of two sides, whose seeds are taken as independent."""

    value: float  # first − second
    error: float | None  # standard error; None where a side has a single seed

    @property
    def in_errors(self) -> float | None:
        """The difference in units of its standard error; None if that is unknown or 0."""
        return self.value / self.error if self.error else None

    def __str__(self) -> str:
        return f"{self.value:+.2f}" + ("" if self.in_errors is None else f" ({self.in_errors:+.1f} errors)")


def summarize_seeds(values: Sequence[float]) -> SeedSummary:
    """Return mean, standard deviation and standard error of one value per seed; there must be at least one."""
    mean, deviation = mean_and_deviation(values)
    if len(values) == 1:
        return SeedSummary(mean, None, None, 1)
    return SeedSummary(mean, deviation, deviation / math.sqrt(len(values)), len(values))


def seed_difference(first: SeedSummary, second: SeedSummary) -> Difference:
    """Return first − second with its standard error, √(e₁² + e₂²)."""
    errors = (first.error, second.error)
    known = [error for error in errors if error is not None]
    return Difference(first.mean - second.mean, math.hypot(*known) if len(known) == len(errors) else None)
