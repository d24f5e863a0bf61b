"""tood: one command for all programs.

`tood --help` must start at once, so this module imports nothing large; the module of a command is imported to run it.
"""

import importlib
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from tood_jax.cli.process import prepare_process
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning

PROG = "tood"
_COMPLETION = "--print_completion"


class Command(NamedTuple):
    """A command: the module with its `Args` and `main(argv, prog)`, what it does, and whether it takes a config."""

    module: str
    summary: str
    takes_config: bool = True


COMMANDS = {
    "train": Command("tood_jax.cli.train", "train a detector, or resume a run that was stopped"),
    "eval": Command("tood_jax.cli.evaluate", "evaluate a checkpoint: COCO AP, or detections of a test set"),
    "predict": Command("tood_jax.cli.predict", "detect objects in images, draw them and write them in several formats"),
    "demo": Command("tood_jax.cli.demo", "a web page on this machine: upload an image, see the detections"),
    "data": Command("tood_jax.cli.data", "check a folder of annotated images, or convert it to COCO or records", False),
    "analyze": Command("tood_jax.tools.analyze.main", "alignment, maps, targets, missed objects", takes_config=False),
    "convert": Command("tood_jax.cli.convert", "convert weights: .pth, .safetensors, runs"),
    "export": Command("tood_jax.cli.export", "export a checkpoint as programs that run without this package"),
    "push": Command(
        "tood_jax.cli.push", "publish a run on the Hugging Face Hub, with a model card", takes_config=False
    ),
    "compare": Command("tood_jax.cli.compare", "compare two runs or results files: which is better?", False),
    "compare-torch": Command(
        "tood_jax.tools.compare_torch.main", "compare the network with PyTorch on the same weights"
    ),
    "compile": Command("tood_jax.tools.compile_for.main", "compile a config for other devices: memory and work"),
    "configs": Command("tood_jax.cli.configs", "list the configs with their published AP", takes_config=False),
    "info": Command("tood_jax.tools.info", "parameters and multiply-adds of a config or a checkpoint"),
    "replay": Command("tood_jax.tools.replay", "one update of a run again: its batch, losses per object, gradients"),
    "runs": Command("tood_jax.cli.runs", "list runs with their steps and AP", takes_config=False),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of `tood`.

    Raises:
        SystemExit: as the command does, and with status 2 for a command that does not exist.
    """
    prepare_process()
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        _import(COMMANDS[name].module).main(words, prog=f"{PROG} {name}")
    elif name in ("-h", "--help"):
        print_line(_help_text())
    elif name == "--version":
        from importlib.metadata import version

        print_line(f"tood_jax {version('tood_jax')}")
    elif name == _COMPLETION:
        from tood_jax.cli.completion import print_completion

        print_completion(words, {name: (_import(one.module).Args, one.takes_config) for name, one in COMMANDS.items()})
    else:
        from tood_jax.config.conversion import did_you_mean

        hint = did_you_mean(name, COMMANDS, cutoff=0.5) or f" Commands: {', '.join(COMMANDS)}."
        print_warning(f"{PROG}: there is no command {printable(name)}.{hint}")
        raise SystemExit(2)


def _help_text() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        (
            "TOOD, task-aligned one-stage object detection, in JAX.\n",
            f"    {PROG} COMMAND [options]\n",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            f"\n`{PROG} COMMAND --help` explains the options of a command, `{PROG} --version` prints the version, and",
            f"`{PROG} {_COMPLETION} bash` (or zsh) prints a file for the completion of your shell.",
        )
    )


def _import(module: str) -> ModuleType:
    """Import a module; some packages ignore a Ctrl-C while they are imported, so it ends the process at once."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
