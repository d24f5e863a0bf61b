"""train.py: train a detector by a config, or by one that is fitted to a folder of images."""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from tood_jax.api.training import train
from tood_jax.cli.command_line import parse
from tood_jax.cli.common import report_errors, use_compilation_cache
from tood_jax.cli.fitted_config import default_config
from tood_jax.cli.outputs import check_output_file, starts_with_keys
from tood_jax.cli.reports import write_reports
from tood_jax.distributed.process_group import join, leave_at_once
from tood_jax.distributed.signals import EXIT_STATUS, Reason, Stopped
from tood_jax.training.disk_space import report_full_disk
from tood_jax.untrusted.terminal import print_warning

PROG = "train.py"


@dataclass(frozen=True)
class Args:
    init_from: str = ""
    """Start a new run with these weights: a backbone or a whole detector, in a .pth or .safetensors file, a run's
    folder, hf://USER/REPO[@REVISION][/FILE], https://…/FILE, or the name of an ImageNet backbone: resnet50
    (docs/weights.md). If the classes differ, the classifier starts with random weights. A run that resumes does not
    need it."""
    report: bool = True
    """After each evaluation, write results.csv and results.png; after the last, the report of `tood eval`."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `train.py`; its exit statuses are those of distributed/signals.py, and 1 for an error."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Train a detector, or resume a run that was stopped."
    default = default_config(argv, prog)
    args, config = parse(Args, argv, prog=prog, description=description, default_config=default)
    use_compilation_cache()
    began = min(time.time(), psutil.Process().create_time())
    try:
        with report_errors(prog), report_full_disk(Path(config.workdir)):
            is_own_config = starts_with_keys("name", "backbone")
            check_output_file("--train.workdir", Path(config.workdir) / "config.json", is_own_config)
            join()
            write = partial(write_reports, config) if args.report else None
            stopped = train(config, init_from=args.init_from, began=began, write_reports=write).stopped
    except Stopped as early:
        print_warning(f"{prog}: stopped on request before the first step; nothing is lost.")
        stopped = early.reason
        leave_at_once(EXIT_STATUS[stopped])
    except KeyboardInterrupt:
        print_warning(f"{prog}: stopped at once; the same command resumes from the newest checkpoint.")
        stopped = Reason.INTERRUPT
    if stopped:
        raise SystemExit(EXIT_STATUS[stopped])
