"""Print a config with all its values as JSON: python -m tood_jax.cli.show_config --config configs/NAME.py"""

import json
import sys
from dataclasses import dataclass

from tood_jax.cli.command_line import parse
from tood_jax.config import to_dict
from tood_jax.untrusted.terminal import print_line

PROG = "python -m tood_jax.cli.show_config"


@dataclass(frozen=True)
class Args:
    """This program has no options of its own."""


def main(argv: list[str] | None = None) -> None:
    """Print the config of the command line, with its overrides."""
    argv = sys.argv[1:] if argv is None else argv
    _, config = parse(Args, argv, prog=PROG, description="Print a config with all its values, as JSON.")
    print_line(json.dumps(to_dict(config), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
