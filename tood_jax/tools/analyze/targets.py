"""tood analyze targets: what training sees in a step: the images as augmented, and the positives of each object."""

import sys
from dataclasses import dataclass

import jax
import numpy as np

from tood_jax.api import load_trained_model
from tood_jax.api.evaluation import check_classes
from tood_jax.api.subject import load_annotated
from tood_jax.cli.common import parse_with_checkpoint, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file
from tood_jax.cli.tables import format_table
from tood_jax.config import ConfigError
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import filter_for_training
from tood_jax.data.sampler import images_per_epoch
from tood_jax.distributed.sharding import make_mesh, put_batch, put_whole, replicated
from tood_jax.models.detector import canvas_pyramid
from tood_jax.training.plan import make_plan
from tood_jax.training.seen_batch import batch_of_step, compile_assignment
from tood_jax.training.train_step import warmup_steps
from tood_jax.types import Batch
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line
from tood_jax.visualization.draw import save_image
from tood_jax.visualization.targets import ObjectTargets, draw_targets, list_targets

PROG = "tood analyze targets"


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), or the folder of one step. Its config is used; every field can be overridden."""
    step: str = "latest"
    """best (by train.best), latest, or the number of a saved step: the weights."""
    update: int = 0
    """The update whose batch is shown, counted from 1 as in the log; 0 for the one that follows the checkpoint."""
    out: str = "targets.png"
    """Picture that is written, .png or .jpg."""


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the targets of a batch and draw them."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Show the batch of a training step, and which locations learn its objects."
    args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    use_compilation_cache()
    with report_errors(prog):
        if args.update < 0:
            raise ConfigError(f"--update={args.update} must be 0 or the number of an update.")
        if not args.out.endswith((".png", ".jpg")):
            raise ConfigError(f"--out={printable(args.out)} must end with .png or .jpg.")
        check_output_file("--out", args.out, None, [args.checkpoint])
        train_set = filter_for_training(load_annotated(config.data.train, config, print_line), config.data)
        trained = load_trained_model(checkpoint, config, averaged=False)
        check_classes(trained, train_set, config.data.train.source)
        step = args.update - 1 if args.update else checkpoint.step
        in_tal_phase = step >= warmup_steps(
            config, make_plan(config, images_per_epoch(train_set, config.data)).epoch_steps
        )
        batch = batch_of_step(train_set, config, step)
        mesh = make_mesh(space=config.parallel.space)
        weights = put_whole((trained.params, trained.batch_stats), replicated(mesh))
        assigned = compile_assignment(trained.model, config, mesh)(
            *weights, put_batch(batch, mesh), np.asarray(in_tal_phase)
        )
        assignment = jax.device_get(assigned)
        pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
        names = class_names(trained.classes)
        kind = config.assigner.kind if config.assigner.kind != "task_aligned" or in_tal_phase else "ATSS (warm-up)"
        print_line(f"Batch of update {step + 1}, assigned by {kind} with the weights of step {checkpoint.step}:")
        print_line(describe_targets(list_targets(batch, assignment, pyramid), batch, train_set))
        save_image(args.out, draw_targets(batch, assignment, pyramid, names))
        print_line(f"Written: {args.out}")


def describe_targets(targets: list[ObjectTargets], batch: Batch, dataset: Dataset) -> str:
    """Return a table of the objects of a batch, and how many have no positive."""
    names = class_names(dataset.classes)
    header = ("image", "object", "size", "positives", "max t̂", "mean IoU")
    rows = [
        (
            printable(dataset.images[int(batch.image_indices[one.row])].path.name),
            f"{one.position + 1} {printable(names[one.label])}",
            f"{one.box[2] - one.box[0]:.0f}×{one.box[3] - one.box[1]:.0f}",
            one.describe_levels(),
            f"{one.largest_target:.2f}",
            f"{one.mean_iou:.2f}",
        )
        for one in targets
    ]
    without = sum(not any(one.positives) for one in targets)
    positives = sum(sum(one.positives) for one in targets)
    total = f"{len(targets)} objects, {positives} positives, {without} objects without a positive."
    return f"{format_table(header, rows, right=('size', 'max t̂', 'mean IoU'))}\n\n{total}" if rows else total
