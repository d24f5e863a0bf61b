"""tood analyze: how a trained detector behaves on single objects and images."""

import importlib
import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from tood_jax.config.conversion import did_you_mean
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line, print_warning

PROG = "tood analyze"
ANALYSES = {
    "alignment": "agreement of classification and localization: the paper's Table 6",
    "maps": "figure of scores, IoU, offsets and assignment of an image at every level",
    "targets": "what training sees in a step: its images, and the positives of each object",
    "missed": "why objects were missed, and what other thresholds would find",
}


@dataclass(frozen=True)
class Args:
    analysis: tyro.conf.Positional[Literal["alignment", "maps", "targets", "missed"]] = "alignment"
    """The analysis; `tood analyze NAME --help` explains its options."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run one analysis. Raises SystemExit with status 2 for one that does not exist."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ANALYSES:
        importlib.import_module(f"tood_jax.tools.analyze.{name}").main(words, prog=f"{prog} {name}")
    elif name in ("-h", "--help"):
        width = max(map(len, ANALYSES))
        lines = [f"  {analysis:{width}}  {summary}" for analysis, summary in ANALYSES.items()]
        print_line("\n".join([f"{prog} NAME --checkpoint runs/NAME [options]\n", *lines]))
    else:
        hint = did_you_mean(name, ANALYSES, cutoff=0.5) or f" Analyses: {', '.join(ANALYSES)}."
        print_warning(f"{prog}: there is no analysis {printable(name)}.{hint}")
        raise SystemExit(2)
