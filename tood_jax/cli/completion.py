"""Shell completion of `tood`, by tyro."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from tood_jax.cli.command_line import STYLE, options_type
from tood_jax.config import Config
from tood_jax.config.files import find_configs
from tood_jax.untrusted.terminal import end_quietly_when_closed, print_warning

SHELLS = ("bash", "zsh")
_FLAT = tyro.conf.arg(name="")


@end_quietly_when_closed()
def print_completion(words: Sequence[str], commands: Mapping[str, tuple[type, bool]]) -> None:
    """Print a shell's file for completion, which holds all options and the names of the configs.

    Args:
        words: the shell, bash or zsh.
        commands: (class of the options, whether it takes a config) by command.

    Raises:
        SystemExit: with status 2 for another shell.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        print_warning(f"tood: name one shell: --print_completion {' or '.join(SHELLS)}.")
        raise SystemExit(2)
    programs = {name: _program(args_type, takes_config) for name, (args_type, takes_config) in commands.items()}
    tyro.extras.subcommand_cli_from_dict(
        programs, prog="tood", args=["--tyro-print-completion", words[0]], use_underscores=True, config=STYLE
    )


def _program(args_type: type, takes_config: bool) -> Callable[[Any], None]:
    """Return a function with the command line of a command, for tyro."""
    options: Any = args_type
    if takes_config:
        path = Annotated[Literal[tuple(find_configs())], tyro.conf.arg(name="config")]  # type: ignore[valid-type]
        fields: list[Any] = [("path", path), ("others", Annotated[options_type(args_type, Config()), _FLAT])]
        options = dataclasses.make_dataclass("WithPath", fields)

    def run(options: Any) -> None: ...

    run.__annotations__ = {"options": Annotated[options, _FLAT], "return": None}
    return run
