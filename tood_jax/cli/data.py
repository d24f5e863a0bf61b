"""tood data: check a folder of annotated images, or convert it to COCO files or records."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tood_jax.cli.command_line import parse_without_config
from tood_jax.cli.common import report_errors
from tood_jax.cli.outputs import check_output_file, check_output_folder
from tood_jax.cli.tables import format_table
from tood_jax.config import ConfigError
from tood_jax.config.files import load_config
from tood_jax.data.convert_folder import convert_folder
from tood_jax.data.health import Health, inspect
from tood_jax.files import write_atomically
from tood_jax.report.data_page import (
    GENERATOR,
    SPLIT_HEADER,
    class_rows,
    data_page,
    describe_sizes,
    size_table,
    split_rows,
)
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

PROG = "tood data"
_CONVERT = "convert"
_PAGE = "data_report.html"
_MAX_CLASSES = 30  # printed; the page has all


@dataclass(frozen=True)
class Args:
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """FOLDER to check it, or `convert FOLDER` to write it in another format."""
    out: str = ""
    """The page of the check (empty means data_report.html here), or the folder of `convert`."""
    config: str = "small_set"
    """Config whose image sizes and max_objects the objects are compared with."""
    seed: int = 0
    """folder_seed: chooses the images of val if the folder has none."""
    format: Literal["coco", "records"] = "coco"
    """convert: COCO files with copies of the images, or records."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `tood data`; exit status 1 if the check finds errors."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Check a folder of annotated images, or write it in another format."
    args = parse_without_config(Args, argv, prog=prog, description=description)
    with report_errors(prog):
        if len(args.words) == 2 and args.words[0] == _CONVERT:
            check_output_folder("--out", args.out)
            for message in convert_folder(args.words[1], Path(args.out), args.format, args.seed):
                print_line(message)
            return
        if len(args.words) != 1 or args.words[0] == _CONVERT:
            raise ConfigError(f"name one folder: {prog} FOLDER, or {prog} convert FOLDER --out DIR.")
        health = _check(args)
    if health.has_errors:
        raise SystemExit(1)


def _check(args: Args) -> Health:
    out = args.out or _PAGE
    check_output_file("--out", out, lambda start: GENERATOR in start)
    data = load_config(args.config).data
    health = inspect(args.words[0], data, args.seed)
    page = data_page(health, data)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out), page)
    print_line(f"{printable(health.folder)}: {health.layout}")
    header, sizes = size_table(health, data)
    for caption, columns, rows in (
        ("", SPLIT_HEADER, split_rows(health)),
        (f"Object sizes: {describe_sizes(data)}\n", header, sizes),
        ("", ("class", "id", *health.datasets), class_rows(health)[:_MAX_CLASSES]),
    ):
        print_line(f"\n{caption}" + format_table(columns, [_as_text(row) for row in rows], right=columns[1:]))
    print_line("\n" + ("\n".join(map(str, health.sorted_findings())) or "No errors or warnings."))
    print_line(f"Page: {printable(out)}")
    return health


def _as_text(row: Sequence[object]) -> tuple[str, ...]:
    return tuple(_cell_text(cell) for cell in row)


def _cell_text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.1f}"
    return f"{cell:,}" if isinstance(cell, int) else printable(cell, 40)


if __name__ == "__main__":
    main()
