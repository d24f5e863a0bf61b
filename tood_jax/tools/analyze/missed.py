"""tood analyze missed: why objects were missed, and what other thresholds would find.

`tood_jax/evaluation/missed.py` defines the causes.
"""

import csv
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tood_jax.api.missed import (
    ObjectFate,
    cause_rows,
    count_settings,
    describe_options,
    explain,
    follow_objects,
    setting_rows,
)
from tood_jax.api.subject import Subject, load_subject
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file, check_output_folder, starts_with_keys
from tood_jax.cli.tables import format_table
from tood_jax.config import ConfigError, DetectConfig
from tood_jax.data.dataset import class_names
from tood_jax.evaluation.missed import CAUSES, FOUND, SUPPRESSED
from tood_jax.files import write_atomically
from tood_jax.tools.analyze.missed_pictures import write_pictures
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line

PROG = "tood analyze missed"
CSV_HEADER = (
    "image", "file", "object", "class", "x0", "y0", "x1", "y1", "cause", "level", "iou", "score", "other_class",
    "other_score", "explanation",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. Its config is used; every field can be overridden."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    settings: bool = True
    """Also count what several hundred other thresholds, NMS IoUs and top-k would find."""
    csv: str = ""
    """Also write a row for each object to this file."""
    json: str = ""
    """Also write the causes and the results of all settings to this file."""
    pictures: str = ""
    """Also draw missed objects in this folder, one picture each."""
    max_pictures: int = 50
    """Largest number of pictures."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the causes of missed objects, and what other settings would find."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Follow every object through detection, and count why objects were missed."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        check_outputs(args)
        subject = load_subject(checkpoint, config, print_line)
        names = class_names(subject.dataset.classes)
        fates = follow_objects(subject)
        print_line(f"Step {checkpoint.step} of {args.checkpoint} on {config.data.val.source}:")
        print_line(describe_causes(fates, config.detect))
        counted = count_settings(subject) if args.settings else []
        if counted:
            print_line(f"\n{describe_settings(counted, config.detect, len(fates))}")
        if args.csv:
            write_atomically(Path(args.csv), to_csv(fates, subject, names).encode())
        if args.json:
            causes = {name: sum(fate.cause == i for fate in fates) for i, name in enumerate(CAUSES)}
            content = {"checkpoint": args.checkpoint, "step": checkpoint.step, "causes": causes, "settings": counted}
            write_atomically(Path(args.json), json.dumps(content, indent=1).encode())
        if args.pictures:
            missed = [fate for fate in fates if fate.cause != FOUND][: args.max_pictures]
            texts = [explain(fate, names) for fate in missed]
            write_pictures(Path(args.pictures), missed, texts, subject.dataset, config.data.bit_depth)
            print_line(f"{len(missed)} pictures written to {args.pictures}")


def check_outputs(args: Args) -> None:
    """Refuse outputs that would replace other files, before anything is computed. Raises ConfigError."""
    if args.max_pictures < 1:
        raise ConfigError(f"--max_pictures={args.max_pictures} must be at least 1.")
    if args.csv:
        header = ",".join(CSV_HEADER).encode()
        check_output_file("--csv", args.csv, lambda start: start.startswith(header), [args.checkpoint])
    if args.json:
        check_output_file("--json", args.json, starts_with_keys("checkpoint", "step", "causes"), [args.checkpoint])
    if args.pictures:
        check_output_folder("--pictures", args.pictures)


def describe_causes(fates: list[ObjectFate], detect: DetectConfig) -> str:
    """Return a table of the causes."""
    rows = [
        (name, str(count), f"{100 * share:.1f} %", *("–" if math.isnan(mean) else f"{mean:.2f}" for mean in means))
        for name, count, share, *means in cause_rows(fates)
    ]
    header = ("cause", "objects", "share", "mean IoU", "mean score")
    return f"{format_table(header, rows, right=header[1:])}\n{describe_options(detect)}"


def describe_settings(counted: list[dict[str, Any]], detect: DetectConfig, objects: int) -> str:
    """Return a table of the settings that differ in one option from the present one, and the best of all."""
    rows = [
        (name, str(found), f"{change:+d}", f"{detections:,}")
        for name, found, change, detections in setting_rows(counted, detect)
    ]
    header = ("setting", "found", "change", "detections")
    covered = f"{len(counted)} settings, {objects} objects; all combinations are in the file of --json."
    return f"{format_table(header, rows, right=header[1:])}\n{covered}"


def to_csv(fates: list[ObjectFate], subject: Subject, names: tuple[str, ...]) -> str:
    """Return a row for each object."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for fate in fates:
        image = subject.dataset.images[fate.image]
        has_other = fate.cause == SUPPRESSED or fate.other_label >= 0
        writer.writerow(
            (
                image.id, printable(image.path.name), fate.position, printable(names[fate.label]),
                *(f"{x:.2f}" for x in fate.gt_box), CAUSES[fate.cause], f"P{fate.level + 3}", f"{fate.iou:.4f}",
                f"{fate.score:.4f}", printable(names[fate.other_label]) if fate.other_label >= 0 else "",
                f"{fate.other_score:.4f}" if has_other else "", explain(fate, names),
            )
        )  # fmt: skip
    return file.getvalue()
