"""The config of `tood train --data FOLDER` without `--config`: the recipe for small sets, fitted to the folder."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tood_jax.cli.common import option_value, report_errors
from tood_jax.config import Config
from tood_jax.config.files import load_config
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.recipe import fit_recipe
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

_RECIPE = "small_set"


def default_config(argv: Sequence[str], prog: str) -> Config | str:
    """Return a fitted config for a command line with --data and without --config, after printing its decisions.

    Returns:
        The config, or "" for any other command line.

    Raises:
        SystemExit: with status 1, after one sentence, if the folder can't be read.
    """
    words = list(argv)
    if option_value("--config", words) or "--help" in words or "-h" in words:
        return ""
    with report_errors(prog):
        folder = option_value("--data", words)
        return fitted_config(folder) if folder else ""


def fitted_config(folder: str) -> Config:
    """Return the recipe of configs/small_set.py, fitted to the training images of a folder. Raises DataError."""
    config = load_config(_RECIPE, folder)
    train_set = filter_for_training(load_dataset(config.data.train, "skip", for_evaluation=False), config.data)
    config, decisions = fit_recipe(config, train_set)
    config = replace(config, name=run_name(folder))
    print_line(f"Config {_RECIPE}, fitted to {printable(folder)} (options on the command line replace these values):")
    for decision in decisions:
        print_line(f"  {decision}")
    print_line(f"The run keeps it in {config.workdir}/config.json, for --config.")
    return config


def run_name(folder: str) -> str:
    """Return the name of a folder with letters, digits, _ and - only."""
    return re.sub(r"[^\w-]+", "_", Path(folder).resolve().name, flags=re.ASCII).strip("_") or "own_set"
