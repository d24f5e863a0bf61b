"""tood replay: one update of a training run again: its batch, losses per object, assignment and gradients.

The batch is that of training, bit for bit: data order and augmentation are functions of the seed and the step.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tood_jax.api import TrainedModel, load_trained_model
from tood_jax.checkpoint.reader import list_steps, named_leaves
from tood_jax.checkpoint.store import Checkpoint, CheckpointError, open_checkpoint
from tood_jax.cli.command_line import parse, refuse_repeated_options
from tood_jax.cli.common import config_of, report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file
from tood_jax.cli.tables import format_table
from tood_jax.config import Config, ConfigError
from tood_jax.config.paths import expand_home
from tood_jax.criterion.losses import LossMaps, loss_maps, loss_parts
from tood_jax.data.dataset import Dataset, class_names
from tood_jax.data.load_dataset import filter_for_training, load_dataset
from tood_jax.data.sampler import images_per_epoch
from tood_jax.distributed.sharding import make_mesh
from tood_jax.models.detector import canvas_pyramid
from tood_jax.training.plan import Plan, make_plan
from tood_jax.training.run_description import RunDescription
from tood_jax.training.seen_batch import batch_of_step
from tood_jax.training.state import TrainState
from tood_jax.training.train_step import predict_in_training, step_gradients, warmup_steps
from tood_jax.types import Assignment, Batch
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line
from tood_jax.visualization.draw import save_image
from tood_jax.visualization.targets import ObjectTargets, draw_targets, list_targets

PROG = "tood replay"
SHOWN_LAYERS = 20


@dataclass(frozen=True)
class Args:
    step: int = 0
    """The update, counted from 1 as in the log: update N changes the weights of step N − 1."""
    out: str = ""
    """Also draw the batch and its positives in this picture, .png or .jpg."""


class Replay(NamedTuple):
    """One update, computed again."""

    batch: Batch
    assignment: Assignment
    maps: LossMaps  # losses of each prediction, on the host
    loss: float
    layer_norms: dict[str, float]  # norm of the gradient by layer
    targets: list[ObjectTargets]


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print what one update of a run learns from, and how strongly: `tood replay runs/NAME --step N`."""
    words = list(sys.argv[1:] if argv is None else argv)
    description = "Show one update of a run again: `tood replay runs/NAME --step N`."
    if "--help" in words or "-h" in words:
        parse(Args, words, prog=prog, description=description, default_config=Config())  # exits
    with report_errors(prog):
        refuse_repeated_options(words, prog)
        if not words or words[0].startswith("-"):
            raise ConfigError("name a run first: tood replay runs/NAME --step N.")
        folder = Path(expand_home(words.pop(0)))
        step = _step_option(words)
        checkpoint = nearest_checkpoint(folder, step - 1)
        config = config_of(checkpoint.about.get("config"), checkpoint.folder, prog)
    args, config = parse(Args, words, prog=prog, description=description, default_config=config)
    use_compilation_cache()
    with report_errors(prog):
        if args.out:
            if not args.out.endswith((".png", ".jpg")):
                raise ConfigError(f"--out={printable(args.out)} must end with .png or .jpg.")
            check_output_file("--out", args.out, None, [folder])
        train_set = filter_for_training(
            load_dataset(config.data.train, config.data.broken_images, for_evaluation=False), config.data
        )
        plan = make_plan(config, images_per_epoch(train_set, config.data))
        if step > plan.total_steps:
            raise ConfigError(f"--step={step} is beyond the last update of this run, {plan.total_steps}.")
        check_same_data(checkpoint, config, train_set, plan)
        trained = load_trained_model(checkpoint, config, averaged=False)
        print_line(describe_weights(checkpoint, step))
        found = replay(trained, config, train_set, step)
        print_line(describe_replay(found, config, train_set))
        if args.out:
            pyramid = canvas_pyramid(found.batch, config.head.anchors_per_location)
            save_image(args.out, draw_targets(found.batch, found.assignment, pyramid, class_names(trained.classes)))
            print_line(f"Written: {args.out}")


def _step_option(words: list[str]) -> int:
    """Return the value of --step. Raises ConfigError."""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--step":
            value = value if equals else (words[i + 1] if i + 1 < len(words) else "")
            if value.isdecimal() and int(value) > 0:
                return int(value)
            raise ConfigError(f"--step={printable(value)} must be the number of an update, at least 1.")
    raise ConfigError("name the update: --step N, as the log counts.")


def nearest_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Return the saved checkpoint nearest to a step, the earlier one of two. Raises CheckpointError."""
    steps = list_steps(folder / "checkpoints")
    if not steps:
        raise CheckpointError(f"{folder} has no checkpoints: name the folder of a run.")
    nearest: int = min(steps, key=lambda saved: (abs(saved - step), saved))
    return open_checkpoint(folder, nearest)


def check_same_data(checkpoint: Checkpoint, config: Config, train_set: Dataset, plan: Plan) -> None:
    """Print what differs from the data of the run where train.accept_other_data allows it.

    Raises:
        CheckpointError: the data or the plan are not those of the run, so the batch would be another.
    """
    description = RunDescription(config, plan, {"train": train_set}, checkpoint.folder.parent)
    description.check(checkpoint.about)
    if description.note:
        print_line(description.note)


def describe_weights(checkpoint: Checkpoint, step: int) -> str:
    """Return a sentence on whose weights are used."""
    if checkpoint.step == step - 1:
        return f"Update {step}, with its own weights (checkpoint {checkpoint.step})."
    return (
        f"Update {step}, with the weights of checkpoint {checkpoint.step}, the nearest one that is saved: the batch is "
        "that of training, but losses, assignment and gradients are not."
    )


def replay(trained: TrainedModel, config: Config, train_set: Dataset, step: int) -> Replay:
    """Compute an update again, on one device.

    Args:
        trained: with the weights that training went on with.
        train_set: filtered for training.
        step: the update, counted from 1.
    """
    batch = batch_of_step(train_set, config, step - 1)
    mesh = make_mesh(jax.local_devices()[:1])
    epoch_steps = make_plan(config, images_per_epoch(train_set, config.data)).epoch_steps
    in_tal_phase = np.asarray(step - 1 >= warmup_steps(config, epoch_steps))

    def compute(params, batch_stats, batch, in_tal_phase):
        state = TrainState(jnp.asarray(step - 1), params, batch_stats, {}, {})
        gradients, losses, _, _ = step_gradients(trained.model, config, mesh, state, batch, in_tal_phase)
        pred, _ = predict_in_training(trained.model, config, mesh, params, batch_stats, batch)
        maps, assignment, _, _ = loss_maps(pred, batch, in_tal_phase, config)
        return maps, assignment, losses.total, jax.tree.map(optax.tree.norm, gradients)

    found = jax.device_get(jax.jit(compute)(trained.params, trained.batch_stats, batch, in_tal_phase))
    maps, assignment, loss, norms = found
    pyramid = canvas_pyramid(batch, config.head.anchors_per_location)
    targets = list_targets(batch, assignment, pyramid)
    return Replay(batch, assignment, maps, float(loss), norms_by_layer(norms), targets)


def norms_by_layer(norms: Any) -> dict[str, float]:
    """Return the norm of the gradient of each layer, largest first, from those of its parameters."""
    squares: dict[str, float] = defaultdict(float)
    for name, norm in named_leaves(norms).items():
        squares[name.rpartition("/")[0] or name] += float(norm) ** 2
    return {name: square**0.5 for name, square in sorted(squares.items(), key=lambda item: -item[1])}


def object_losses(found: Replay) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the loss by part of each object (its positives), and of each image's background (all its other locations).

    All of them add up to the loss of the batch; with BatchNorm and train.accumulate_steps only roughly.
    """
    parts = found.maps._asdict()
    gt_index = found.assignment.gt_index

    def total(row: int, chosen: np.ndarray) -> dict[str, float]:
        return {part: float(values[row][chosen].sum()) for part, values in parts.items()}

    objects = [total(one.row, gt_index[one.row] == one.position) for one in found.targets]
    background = [total(row, gt_index[row] < 0) for row in range(len(gt_index))]
    return objects, background


def describe_replay(found: Replay, config: Config, dataset: Dataset) -> str:
    """Return the tables of images, objects and layers, the largest losses first."""
    names = class_names(dataset.classes)
    parts = loss_parts(config)
    objects, background = object_losses(found)
    sum_of = partial(_sum_of, parts=parts)
    images = []
    for row, index in enumerate(found.batch.image_indices.tolist()):
        own = [loss for one, loss in zip(found.targets, objects, strict=True) if one.row == row]
        in_objects = sum(map(sum_of, own))
        images.append((in_objects + sum_of(background[row]), in_objects, len(own), _name(dataset, index)))
    image_rows = [
        (name, f"{total:.4f}", f"{of_objects:.4f}", f"{total - of_objects:.4f}", str(count))
        for total, of_objects, count, name in sorted(images, reverse=True)
    ]
    order = sorted(range(len(objects)), key=lambda i: -sum_of(objects[i]))
    object_rows = [_object_row(found, objects[i], i, parts, names, dataset) for i in order]
    norm = sum(value**2 for value in found.layer_norms.values()) ** 0.5
    layer_rows = [(name, f"{value:.4g}") for name, value in list(found.layer_norms.items())[:SHOWN_LAYERS]]
    image_header = ("image", "loss", "of objects", "of background", "objects")
    object_header = ("image", "object", "size", "positives", "max t̂", "loss", *parts)
    layer_header = ("layer", "gradient norm")
    tables = [
        f"loss {found.loss:.6g}, gradient norm {norm:.6g}",
        format_table(image_header, image_rows, right=image_header[1:]),
        format_table(object_header, object_rows, right=object_header[4:]) if object_rows else "No objects.",
        format_table(layer_header, layer_rows, right=layer_header[1:]),
    ]
    hidden = len(found.layer_norms) - len(layer_rows)
    return "\n\n".join(tables) + (f"\n… and {hidden} layers with smaller gradients" if hidden > 0 else "")


def _sum_of(loss: dict[str, float], parts: tuple[str, ...]) -> float:
    return sum(loss[part] for part in parts)


def _object_row(
    found: Replay, loss: dict[str, float], i: int, parts: tuple[str, ...], names: tuple[str, ...], dataset: Dataset
) -> tuple[str, ...]:
    one = found.targets[i]
    return (
        _name(dataset, int(found.batch.image_indices[one.row])),
        f"{one.position + 1} {printable(names[one.label])}",
        f"{one.box[2] - one.box[0]:.0f}×{one.box[3] - one.box[1]:.0f}",
        one.describe_levels(),
        f"{one.largest_target:.2f}",
        f"{_sum_of(loss, parts):.4f}",
        *(f"{loss[part]:.4f}" for part in parts),
    )


def _name(dataset: Dataset, index: int) -> str:
    return printable(dataset.images[index].path.name) if index >= 0 else "(filler)"
