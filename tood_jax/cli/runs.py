"""tood runs: a table of runs, from the files in their folders."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from tood_jax.cli.command_line import refuse_repeated_options
from tood_jax.cli.tables import format_table
from tood_jax.run_log.metrics_rows import read_metrics_rows
from tood_jax.untrusted.bounded_json import JsonError, as_number, as_text, parse_json
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.regular_files import read_regular
from tood_jax.untrusted.terminal import end_quietly_when_closed, print_line, print_warning

PROG = "tood runs"
HEADER = ("run", "config", "step", "AP", "at step", "best AP", "checkpoints")
_MAX_CONFIG_BYTES = 16 << 20


class RunError(ValueError):
    """A folder is no run, or its files can't be read; the message is one sentence."""


@dataclass(frozen=True)
class Args:
    folders: tyro.conf.Positional[tuple[str, ...]] = ("runs/*",)
    """Folders of runs, and globs in quotes."""


@end_quietly_when_closed()
def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the table; exit status 1 if no folder is found."""
    argv = sys.argv[1:] if argv is None else argv
    refuse_repeated_options(argv, prog)
    args = tyro.cli(Args, args=argv, prog=prog, description="List runs with their steps and AP.", use_underscores=True)
    folders = find_folders(args.folders)
    if not folders:
        print_warning(f"{prog}: no folder matches {' '.join(map(printable, args.folders))}.")
        raise SystemExit(1)
    print_line(format_table(HEADER, [describe_run(folder) for folder in folders], right=HEADER[2:6]))


def find_folders(patterns: Sequence[str]) -> list[Path]:
    """Return what the patterns match, once each, in their order; a name that does not exist stays, unless a glob."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
        paths = sorted(glob.glob(pattern)) if is_glob else [pattern]
        found |= dict.fromkeys(map(Path, paths))
    return list(found)


def describe_run(folder: Path) -> tuple[str, ...]:
    """Return the row of a run by HEADER, or its name and why it has none."""
    try:
        return (printable(folder), *_describe(folder))
    except (RunError, OSError) as error:
        reason = str(error) if isinstance(error, RunError) else error.strerror or type(error).__name__
        return (printable(folder), f"({printable(reason)})")


def _describe(folder: Path) -> tuple[str, ...]:
    """Return the cells of a run after its name. Raises RunError or OSError."""
    if not folder.is_dir():
        raise RunError("not a folder" if folder.exists() else "no such folder")
    steps = _checkpoint_steps(folder / "checkpoints")
    log, config = folder / "metrics.jsonl", folder / "config.json"
    if not (steps or log.exists() or config.exists()):
        raise RunError("not a run: it has no config.json, metrics.jsonl or checkpoints")
    about = _read_about(folder, steps[-1]) if steps and not config.exists() else {}
    name = _name(_read_json(config) if config.exists() else about.get("config"))
    rows = [(step, _ap(row)) for step, row in read_metrics_rows(log)] if log.exists() else []
    if log.exists() and not rows:
        raise RunError("metrics.jsonl has no line that can be read")
    step = max([*(step for step, _ in rows[-1:]), *steps[-1:]], default=None)
    scores = [(ap, at) for at, ap in rows if ap is not None]
    ap, at = scores[-1] if scores else (None, None)
    best = max(scores)[0] if scores else None
    return (name, _cell(step), _percent(ap), _cell(at), _percent(best), ", ".join(map(str, steps)) or "–")


def _checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps with a folder, in rising order."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _read_about(folder: Path, step: int) -> dict[str, Any]:
    """Return what a checkpoint says of itself, for a folder without the files of a run (of `tood convert`)."""
    from tood_jax.checkpoint.about_json import MAX_ABOUT_BYTES, parse_about  # loads JAX, which few folders need

    file = folder / "checkpoints" / str(step) / "about" / "about.json"
    try:
        return parse_about(read_regular(file, MAX_ABOUT_BYTES))[0]
    except JsonError as error:
        raise RunError(f"checkpoints/{step}/about/about.json {error}") from None


def _read_json(file: Path) -> Any:
    try:
        return parse_json(read_regular(file, _MAX_CONFIG_BYTES))
    except JsonError as error:
        raise RunError(f"{file.name} {error}") from None


def _name(config: Any) -> str:
    name = as_text(config.get("name")) if isinstance(config, dict) else None
    if name is None:
        raise RunError("config.json has no name of a config")
    return printable(name, 60)


def _ap(row: dict[str, Any]) -> float | None:
    """Return AP of a row of an evaluation; None for another row."""
    return as_number(row.get("AP")) if row.get("kind") == "eval" else None


def _cell(value: int | None) -> str:
    return "–" if value is None else str(value)


def _percent(ap: float | None) -> str:
    return "–" if ap is None else f"{100 * ap:.1f}"
