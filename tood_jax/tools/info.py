"""tood info: the network of a config or a checkpoint in numbers; nothing is compiled or computed."""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from tood_jax.checkpoint.reader import list_steps, nest, ranking_metric, ranking_value
from tood_jax.checkpoint.store import Checkpoint
from tood_jax.cli.command_line import parse
from tood_jax.cli.common import parse_with_checkpoint, report_errors
from tood_jax.cli.configs import describe_backbone, describe_head
from tood_jax.cli.tables import format_table
from tood_jax.config import Config, ConfigError
from tood_jax.data.preprocess import canvases
from tood_jax.models.build import build_model
from tood_jax.models.detector import Detector
from tood_jax.tools.multiply_adds import linear_operations
from tood_jax.training.optimizer import is_trained
from tood_jax.untrusted.printable import printable
from tood_jax.untrusted.terminal import print_line
from tood_jax.weights.shapes import variable_shapes

PROG = "tood info"
HEADER = ("part", "parameters", "trained", "multiply-adds")
_SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Run folder (runs/NAME), the folder of one step, or a model (hf://USER/REPO), instead of --config."""
    step: str = "best"
    """best (by train.best), latest, or the number of a saved step."""
    canvas: tuple[int, ...] = ()
    """Height and width in pixels, 800,1344; empty for the largest of data.buckets."""
    num_classes: int = 80
    """Number of classes of a config; a checkpoint has its own."""


class Part(NamedTuple):
    """Sizes of one part of the network."""

    parameters: int
    trained: int  # without those of frozen stages
    multiply_adds: int  # of convolutions and matrix products, for one image


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Print the numbers."""
    argv = sys.argv[1:] if argv is None else argv
    description = "Show the size of a network by parts, its classes, canvases and steps."
    checkpoint = None
    if any(word.partition("=")[0] == "--config" for word in argv):
        args, config = parse(Args, argv, prog=prog, description=description)
    else:
        args, config, checkpoint = parse_with_checkpoint(Args, argv, prog=prog, description=description)
    with report_errors(prog):
        if args.checkpoint and checkpoint is None:
            raise ConfigError("give --config or --checkpoint, not both: a checkpoint has its config.")
        for text in describe(config, checkpoint, args):
            print_line(text)


def describe(config: Config, checkpoint: Checkpoint | None, args: Args) -> list[str]:
    """Return the lines about a config, or about the config of a checkpoint.

    Raises:
        ConfigError: the canvas or the number of classes is invalid.
    """
    names = [entry["name"] for entry in checkpoint.about.get("classes") or ()] if checkpoint else []
    num_classes = len(names) or args.num_classes
    canvas = args.canvas or max(config.data.buckets, key=math.prod)
    if len(canvas) != 2 or any(side <= 0 or side % 32 for side in canvas):
        raise ConfigError(f"--canvas={args.canvas} must be a height and a width in multiples of 32.")
    if num_classes < 1:
        raise ConfigError(f"--num_classes={num_classes} must be at least 1.")
    parts = measure(config, num_classes, (canvas[0], canvas[1]))
    parts["sum"] = Part(*(sum(column) for column in zip(*parts.values(), strict=True)))
    rows = [
        (name, f"{part.parameters:,}", f"{part.trained:,}", f"{part.multiply_adds / 1e9:.2f} G")
        for name, part in parts.items()
    ]
    sides = ", ".join(f"{height}×{width}" for height, width in canvases(config.data))
    return [
        f"{config.name}: {describe_backbone(config.backbone)}, {describe_head(config.head)}, {config.assigner.kind}",
        "",
        format_table(HEADER, rows, right=HEADER[1:]),
        "",
        f"multiply-adds: one image on a canvas of {canvas[0]}×{canvas[1]}",
        f"canvases: {sides}",
        f"classes: {num_classes}{_listed(names)}",
        f"training: {config.train.epochs} epochs of {config.train.batch_size} images per step",
        *(_describe_steps(checkpoint) if checkpoint else ()),
    ]


def measure(config: Config, num_classes: int, canvas: tuple[int, int]) -> dict[str, Part]:
    """Return the sizes of backbone, neck and head, counted in the traced network.

    Args:
        config: the network.
        num_classes: number of classes C.
        canvas: (height, width), pixels.
    """
    model = build_model(config, num_classes)
    parameters: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, shape in variable_shapes(model).items():
        group, *path = name.split("/")
        if group == "params":
            parameters[path[0]] += math.prod(shape)
            trained[path[0]] += math.prod(shape) * is_trained(tuple(path), config)
    multiply_adds: Counter[str] = Counter()
    for operation in linear_operations(_trace(model, canvas)):
        multiply_adds[operation.module.split("/")[1]] += operation.multiply_adds
    return {name: Part(parameters[name], trained[name], multiply_adds[name]) for name in ("backbone", "neck", "head")}


def _trace(model: Detector, canvas: tuple[int, int]) -> Jaxpr:
    """Return the operations of the network on one image."""
    variables = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in variable_shapes(model).items()}
    image = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32)
    return jax.make_jaxpr(model.apply)(nest(variables), image).jaxpr


def _listed(names: list[str]) -> str:
    more = ", …" if len(names) > _SHOWN_CLASSES else ""
    return f" ({', '.join(names[:_SHOWN_CLASSES])}{more})" if names else ""


def _describe_steps(checkpoint: Checkpoint) -> list[str]:
    metric = ranking_metric(checkpoint.about)
    value = ranking_value(checkpoint.about, metric)
    score = "" if value is None else f", {printable(metric, 20)} {100 * value:.1f}"
    steps = list_steps(checkpoint.folder.parent)
    return [
        f"checkpoint: step {checkpoint.step}{score}, with {', '.join(checkpoint.groups)}",
        *([f"saved steps: {', '.join(map(str, steps))}"] if steps else ()),
    ]
