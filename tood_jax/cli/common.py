"""What the programs share: errors in one sentence, the compilation cache, and the config of a checkpoint."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import jax

from tood_jax.checkpoint.orbax_noise import silence_orbax
from tood_jax.checkpoint.store import Checkpoint, CheckpointError
from tood_jax.cli.command_line import parse, refuse_repeated_options
from tood_jax.cli.process import compilation_cache_folder, missing_backend_message, prepare_process
from tood_jax.config import Config, ConfigError
from tood_jax.config.paths import expand_home
from tood_jax.config.validation import stored_config
from tood_jax.data.errors import DataError, StalledError
from tood_jax.distributed.process_group import ProcessError, end_at_once, explain_lost_peer, leave_at_once
from tood_jax.distributed.signals import EXIT_STATUS, Reason, StatusError, Stopped
from tood_jax.export.folder import open_trained
from tood_jax.training.collapse import CollapseError
from tood_jax.training.non_finite import NonFiniteLossError
from tood_jax.untrusted.terminal import print_warning

Args = TypeVar("Args")
_NAMED_STEPS: dict[str, Literal["best", "latest"]] = {"best": "best", "latest": "latest"}
EXPECTED_ERRORS = (
    ConfigError, DataError, CheckpointError, NonFiniteLossError, CollapseError, ProcessError, StatusError, OSError,
)  # fmt: skip


@contextmanager
def report_errors(prog: str) -> Iterator[None]:
    """End the program on an expected error with its sentence and status 1 (or `StatusError.status`), without traceback.

    In a run of many processes every error ends this one at once, and the loss of another process is an expected one,
    after which the run should be started again.
    """
    prepare_process()
    silence_orbax()
    try:
        yield
    except EXPECTED_ERRORS as error:
        lost = explain_lost_peer(error)
        print_warning(f"{prog}: {lost or error}")
        if isinstance(error, StalledError):  # a thread hangs in a read, and an ordinary exit would wait for it
            end_at_once(1)
        status = error.status if isinstance(error, StatusError) else 1
        leave_at_once(EXIT_STATUS[Reason.PREEMPTION] if lost else status)
        raise SystemExit(status) from None
    except KeyboardInterrupt:
        if jax.distributed.is_initialized():
            print_warning(f"{prog}: stopped at once.")
            leave_at_once(EXIT_STATUS[Reason.INTERRUPT])
        raise
    except Stopped:
        raise
    except Exception as error:
        if sentence := missing_backend_message(error):
            print_warning(f"{prog}: {sentence}")
            raise SystemExit(1) from None
        if jax.distributed.is_initialized():
            lost = explain_lost_peer(error)
            print_warning(f"{prog}: {lost}" if lost else traceback.format_exc())
            leave_at_once(EXIT_STATUS[Reason.PREEMPTION] if lost else 1)
        raise


def use_compilation_cache() -> None:
    """Keep compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/tood_jax, so that a restart does not recompile.

    Without a home folder and the variable, a note is printed and nothing is kept.
    """
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = compilation_cache_folder(given)
    if folder is None:
        print_warning("Note: without a home folder compiled programs are not kept; set JAX_COMPILATION_CACHE_DIR.")
    elif folder != given:
        jax.config.update("jax_compilation_cache_dir", folder)


def parse_with_checkpoint(
    args_type: type[Args], argv: list[str], *, prog: str, description: str
) -> tuple[Args, Config, Checkpoint]:
    """Parse the command line of a program with --checkpoint and --step, whose default config is the checkpoint's.

    Returns:
        (the program's own options, the config with the fields of the command line, the checkpoint).

    Raises:
        SystemExit: as `parse`, and with status 1 if the checkpoint or its config can't be read.
    """
    is_help = "--help" in argv or "-h" in argv
    with report_errors(prog):
        refuse_repeated_options(argv, prog)
        path, step = option_value("--checkpoint", argv), option_value("--step", argv) or "best"
    if is_help and not path:
        parse(args_type, argv, prog=prog, description=description, default_config=Config())  # exits
    with report_errors(prog):
        if not path:
            raise CheckpointError(
                "name a checkpoint: --checkpoint runs/NAME (or the folder of one step, or hf://USER/REPO)."
            )
        checkpoint = open_trained(path, parse_step(step), log=print_warning)
        config = config_of(checkpoint.about.get("config"), checkpoint.folder, prog)
    args, config = parse(args_type, argv, prog=prog, description=description, default_config=config)
    return args, config, checkpoint


def parse_step(text: str) -> int | Literal["best", "latest"]:
    """Return the value of --step. Raises ConfigError."""
    if text in _NAMED_STEPS:
        return _NAMED_STEPS[text]
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"--step={text} must be best, latest or the number of a saved step.")


def config_of(values: Any, where: object, prog: str) -> Config:
    """Return the config stored in a checkpoint or a file of weights, after printing the notes on it."""
    config, notes = stored_config(values, where)
    for note in notes:
        print_warning(f"{prog}: note: {note}")
    return config


def option_value(option: str, argv: list[str]) -> str:
    """Return the value of a path option with ~ expanded; "" without the option."""
    for i, word in enumerate(argv):
        if word == option and i + 1 < len(argv):
            return expand_home(argv[i + 1])
        if word.startswith(f"{option}="):
            return expand_home(word.partition("=")[2])
    return ""
