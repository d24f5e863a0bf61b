"""eval.py: COCO's numbers for a checkpoint, or only its detections for a test set without annotations."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from tood_jax.api.evaluation import evaluate_checkpoint
from tood_jax.api.subject import make_subject
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.cli.common import (
    parse_with_checkpoint,
    report_errors,
    use_compilation_cache,
)
from tood_jax.cli.outputs import check_output_file, is_results_file
from tood_jax.cli.reports import check_report_folder, make_report, missed_section, report_folder
from tood_jax.config import Config, ConfigError
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import load_dataset
from tood_jax.data.views import parse_variants
from tood_jax.distributed.host_sync import is_primary
from tood_jax.distributed.process_group import join
from tood_jax.evaluation.coco_ap import format_table, write_results
from tood_jax.evaluation.evaluate import Evaluation
from tood_jax.report.analysis import Analysis
from tood_jax.report.page import Section
from tood_jax.report.write import PAGE
from tood_jax.untrusted.terminal import print_line, print_warning
from tood_jax.weights.model_folder import ModelFolder

PROG = "eval.py"


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model of `tood push`: its folder or hf://USER/REPO[@REVISION].
    Its config is used; every field can be overridden."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    out: str = ""
    """File for the detections as COCO results JSON; empty means STEP.results.json (with --tta STEP.tta.results.json) in
    the run's folder, or in the working directory for a model without a run."""
    tta: str = ""
    """Test-time augmentation: detect also in variants of each image, and merge: flip, scales, such as flip,0.8,1.2."""
    report: bool = True
    """Write a report: a page, tables and pictures, with the uncertainty of AP."""
    missed: bool = False
    """Add to the report why objects were missed, and what other thresholds would find: two more passes over the images,
    in one process."""
    report_out: str = ""
    """Folder of the report; empty means eval/STEP in the folder of --out's default."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `eval.py`."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Evaluate a checkpoint on the val split of its config, or of overrides."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        variants = parse_variants(args.tta)
        run = Path() if isinstance(checkpoint, ModelFolder) else checkpoint.folder.parent.parent
        out = Path(args.out) if args.out else run / f"{checkpoint.step}{'.tta' * bool(args.tta)}.results.json"
        val = config.data.val
        check_output_file("--out", out, is_results_file, [val.images, val.annotations, args.checkpoint])
        folder = Path(args.report_out) if args.report_out else report_folder(run, checkpoint.step)
        if args.report:
            check_report_folder(folder)
        join()
        if args.missed and not args.report:
            raise ConfigError("--missed is a part of the report, which --report=False switches off.")
        if args.missed and jax.process_count() > 1:
            raise ConfigError("--missed works in one process: evaluate without it, then run `tood analyze missed`.")
        show = print_line if is_primary() else lambda _: False
        dataset = load_dataset(val, config.data.broken_images, for_evaluation=is_primary())
        show(f"val: {dataset.report.summary()}")
        evaluation = evaluate_checkpoint(checkpoint, dataset, config, variants)
        report = None
        if is_primary():
            write_results(evaluation.results, out)
            if args.report and dataset.has_annotations:
                sections = partial(_missed_sections, checkpoint, dataset, config) if args.missed else tuple
                report = make_report(folder, evaluation, dataset, config, checkpoint.step, print_warning, sections)
        show(f"Step {checkpoint.step} of {args.checkpoint} on {val.source}:")
        for text in describe(evaluation, dataset, report):
            show(text)
        show(f"{len(evaluation.results)} detections in {len(evaluation.detections)} images written to {out}")
        if report is not None:
            show(f"Report: {folder / PAGE}")


def _missed_sections(checkpoint: Checkpoint, dataset: Dataset, config: Config) -> list[Section]:
    print_line("Following each object through detection: two more passes over the images.")
    return [missed_section(make_subject(checkpoint, dataset, config))]


def describe(evaluation: Evaluation, dataset: Dataset, analysis: Analysis | None = None) -> list[str]:
    """Return the table of metrics, or why there is none, and a note on what was left out."""
    intervals = None if analysis is None else (analysis.intervals, [ap.interval for ap in analysis.class_ap])
    table = format_table(evaluation.metrics, class_names(dataset.classes), intervals)
    texts = [table if dataset.has_annotations else "The file has no list 'annotations', so there is no AP."]
    return [*texts, evaluation.left_out] if evaluation.left_out else texts
