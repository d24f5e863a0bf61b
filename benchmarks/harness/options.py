"""Command line options of the cases.

A case is `main(argv) -> report`: it prints tables and writes the report, with everything that it measured, as JSON.
Units are seconds, bytes and floating-point operations, unless a name says otherwise (`ms`, `MiB`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax
import tyro

from tood_jax.cli.command_line import parse, refuse_repeated_options
from tood_jax.config import Config

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
R50 = "configs/tood_r50_fpn_1x_coco.py"
Args = TypeVar("Args", bound="Options")


@dataclass(frozen=True)
class Options:
    """Options of every case."""

    repeats: int = 5
    """Timed rounds; each round runs all variants once, one after the other. The first, untimed round is reported
    separately."""
    seed: int = 0
    """Seed of the random inputs."""
    out: str = ""
    """Path of the JSON report; empty means benchmarks/results/NAME.json."""
    compilation_cache: bool = False
    """Use JAX's persistent compilation cache where one is set; compile times are meaningless then."""


@dataclass(frozen=True)
class ModelOptions(Options):
    """Options of the cases that run a whole model; the config's batch size is not used."""

    batch: int = 2
    """Images per step, over all devices."""
    height: int = 256
    """Canvas height, pixels, a multiple of 32."""
    width: int = 256
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """Number of classes C."""
    devices: int = 1
    """Number of devices; 0 means all."""


@dataclass(frozen=True)
class TrainingStepOptions(ModelOptions):
    """Options of the cases that run a training step."""

    objects: int = 8
    """Objects per image; padded to the config's data.max_objects."""


def program_name(case: str) -> str:
    """Return the command that runs a case."""
    return f"python -m benchmarks.cases.{case}"


def read_options(args_type: type[Args], argv: Sequence[str], name: str, description: str) -> Args:
    """Return the options of a case without a config."""
    prog = program_name(name)
    refuse_repeated_options(argv, prog)
    args = tyro.cli(args_type, args=list(argv), prog=prog, description=description, use_underscores=True)
    return _check_and_apply(args)


def read_options_and_config(
    args_type: type[Args], argv: Sequence[str], name: str, description: str
) -> tuple[Args, Config]:
    """Return the options of a case with `--config`, and the config with its overrides."""
    args, config = parse(args_type, argv, prog=program_name(name), description=description)
    return _check_and_apply(args), config


def with_default_config(argv: Sequence[str]) -> list[str]:
    """Return the arguments, with the config of R50 in front if they name none."""
    return [*argv] if any(word.startswith("--config") for word in argv) else [f"--config={R50}", *argv]


def _check_and_apply(args: Args) -> Args:
    if args.repeats < 1:
        raise SystemExit(f"--repeats={args.repeats} must be at least 1.")
    if not args.compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
    return args
