"""tood configs: the configs, their published AP, and the settings in which they differ."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from tood_jax.cli.command_line import refuse_repeated_options
from tood_jax.cli.tables import format_table
from tood_jax.config import BackboneConfig, ConfigError, HeadConfig
from tood_jax.config.files import docstring, find_configs, load_config, published_folder
from tood_jax.untrusted.terminal import end_quietly_when_closed, print_line

PROG = "tood configs"
HEADER = ("config", "AP", "backbone", "head", "assigner", "short side", "epochs")
_PUBLISHED_AP = re.compile(r"^Score: published: AP ([\d.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Args:
    """This command has no options of its own."""


@end_quietly_when_closed()
def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the table of the published configs, and the names of those in the working directory's configs/."""
    argv = sys.argv[1:] if argv is None else argv
    refuse_repeated_options(argv, prog)
    tyro.cli(Args, args=argv, prog=prog, description="List the configs with their published AP on COCO val2017.")
    files, published = find_configs(), published_folder()
    rows = [_row(name, file) for name, file in files.items() if file.is_relative_to(published)]
    print_line(format_table(HEADER, rows, right=("AP", "epochs")))
    own = {name: file for name, file in files.items() if not file.is_relative_to(published)}
    if own:  # they are not run: the folder may belong to another project
        lines = [f"  {name}  {docstring(file).partition(chr(10))[0]}" for name, file in own.items()]
        print_line("\n".join(["\nIn configs/ here:", *lines]))
    print_line("\nAP is that of the PyTorch code on COCO val2017. Start with: tood train --config NAME")


def _row(name: str, file: Path) -> tuple[str, ...]:
    """Return the row of a published config by HEADER, or its name and what is wrong in it."""
    try:
        config = load_config(str(file))
    except ConfigError as error:
        return (name, str(error))
    found = _PUBLISHED_AP.search(docstring(file))
    low, high = config.data.train_short_side
    side = str(high) if low == high else f"{low}–{high}"
    return (
        name,
        found[1] if found else "–",
        describe_backbone(config.backbone),
        describe_head(config.head),
        config.assigner.kind,
        side,
        str(config.train.epochs),
    )


def describe_backbone(backbone: BackboneConfig) -> str:
    """Return the usual short name of a backbone: R-50, X-101 64x4d, DCN c4–c5."""
    name = f"R-{backbone.depth}"
    if backbone.groups > 1:
        name = f"X-{backbone.depth} {backbone.groups}x{backbone.width_per_group}d"
    if backbone.width != 64:
        name += f", width {backbone.width}"
    stages = backbone.deformable_stages
    return f"{name}, DCN c{stages[0] + 1}–c{stages[-1] + 1}" if stages else name


def describe_head(head: HeadConfig) -> str:
    """Return the kind of a head, its number of stacked convolutions, and what is special: T-head ×6, anchors."""
    name = "T-head" if head.kind == "t_head" else head.kind
    special = {"DCN": head.deformable_convs > 0, "anchors": head.box_coding == "anchor_deltas"}
    return ", ".join([f"{name} ×{head.num_convs}", *(word for word, holds in special.items() if holds)])
