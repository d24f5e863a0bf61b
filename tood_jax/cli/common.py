"""What the doors share: quiet errors, the compilation cache, and checkpoints as their source of config."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

from tood_jax.build import build_model
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError, from_dict
from tood_jax.data.coco import ClassInfo
from tood_jax.data.errors import DataError, StalledError
from tood_jax.detectors.detector import Detector
from tood_jax.training.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from tood_jax.training.loop import NonFiniteLossError
from tood_jax.training.processes import ProcessError, end_at_once, leave_at_once, of_a_lost_peer
from tood_jax.training.signals import EXIT_STATUS, Reason, Stopped
from tood_jax.training.state import Tree

Args = TypeVar("Args")
EXPECTED_ERRORS = (ConfigError, DataError, CheckpointError, NonFiniteLossError, ProcessError, OSError)


@contextmanager
def said_in_one_sentence(prog: str) -> Iterator[None]:
    """Expected errors end the program with their sentence and status 1, without a traceback.

    In a run of many processes every error ends this one at once, and the loss of another process is an expected one,
    after which the run should be started again.
    """
    try:
        yield
    except EXPECTED_ERRORS as error:
        lost = of_a_lost_peer(error)
        print(f"{prog}: {lost or error}", file=sys.stderr)
        if isinstance(error, StalledError):  # a thread hangs in a read, and an ordinary exit would wait for it
            end_at_once(1)
        leave_at_once(EXIT_STATUS[Reason.PREEMPTION] if lost else 1)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if jax.distributed.is_initialized():
            print(f"{prog}: stopped at once.", file=sys.stderr)
            leave_at_once(EXIT_STATUS[Reason.INTERRUPT])
        raise
    except Stopped:
        raise
    except Exception as error:
        if jax.distributed.is_initialized():
            lost = of_a_lost_peer(error)
            print(f"{prog}: {lost}" if lost else traceback.format_exc(), file=sys.stderr)
            leave_at_once(EXIT_STATUS[Reason.PREEMPTION] if lost else 1)
        raise


def use_compilation_cache() -> None:
    """Compiled programs are kept in ~/.cache/tood_jax, so that a restart doesn't compile again."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "tood_jax"))


class Trained(NamedTuple):
    """A model as a checkpoint holds it."""

    model: Detector
    params: Tree
    batch_stats: Tree
    classes: tuple[ClassInfo, ...]


def parse_with_checkpoint(
    args_type: type[Args], argv: list[str], *, prog: str, description: str
) -> tuple[Args, Config, Checkpoint]:
    """`options.parse` for doors that take --checkpoint and --step: the checkpoint's config is the default."""
    wants_help = "--help" in argv or "-h" in argv
    path, step = _value_of("--checkpoint", argv), _value_of("--step", argv) or "best"
    if wants_help and not path:
        parse(args_type, argv, prog=prog, description=description, default_config=Config())  # ends the program
    with said_in_one_sentence(prog):
        if not path:
            raise CheckpointError("name a checkpoint: --checkpoint runs/NAME (or the folder of one step).")
        if not (step.isdigit() or step in ("best", "latest")):
            raise CheckpointError(f"--step={step} must be best, latest or the number of a saved step.")
        checkpoint = open_checkpoint(path, int(step) if step.isdigit() else step)  # type: ignore[arg-type]
        config = from_dict(checkpoint.about["config"])
    args, config = parse(args_type, argv, prog=prog, description=description, default_config=config)
    return args, config, checkpoint


def _value_of(option: str, argv: list[str]) -> str:
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return ""


def load_trained(checkpoint: Checkpoint, config: Config) -> Trained:
    """The weights to evaluate (the moving average where one was kept) and their model."""
    classes = tuple(ClassInfo(one["id"], one["name"]) for one in checkpoint.about["classes"])
    weights = "ema" if "ema" in checkpoint.groups else "params"
    groups = [weights, *(group for group in ["batch_stats"] if group in checkpoint.groups)]
    arrays = checkpoint.arrays(*groups)
    return Trained(build_model(config, len(classes)), arrays[weights], arrays.get("batch_stats", {}), classes)
