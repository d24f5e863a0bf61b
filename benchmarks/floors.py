"""The least work of one step a stage, counted, and the least time it can take on a chip.

    python -m benchmarks.floors                      # R50, 800×1344, training and inference
    python -m benchmarks.floors --batch 4 --hlo FILE # beside what a compiled step moves (compile_for.py)

Nothing is compiled or computed. The rules, all in favour of the machine:

- A map between two products (convolution or matrix product) is written once and read once, in bfloat16, whoever
  needs it; norms, ReLUs, biases, resizing and concatenation happen on the way. The shortcut of a residual block is
  read once more. Kernels are read once a pass, in bfloat16.
- Backward, a trained product reads its input and the gradient of its output and writes the gradient of its input
  (not where nothing before it is trained), at twice its multiply-adds (once, there). Products that share their input
  read it, and write its gradient, once.
- A frozen product has no backward pass.
- Scores, boxes and targets are float32, 4 bytes; each is read or written once by each stage that needs it.
- SGD reads gradient, parameter and momentum and writes two of them, in float32; so does the update of an average.
- A stage takes the longer of its products' time at the chip's peak and its bytes' time; stages follow one another.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import (
    R50,
    Options,
    Report,
    begin_report,
    finish_report,
    print_table,
    read_options_and_config,
    with_config,
)
from benchmarks.products import Product, products
from tood_jax.ahead_of_time.chips import CHIPS
from tood_jax.ahead_of_time.traffic import hbm_bytes_by_operation
from tood_jax.build import build_model
from tood_jax.config import Config
from tood_jax.geometry.pyramid import level_shapes
from tood_jax.training.optimizer import is_trained

NAME = "floors"
# Of modules, first match wins. Stages 1–4 of the backbone are c2–c5.
STAGES = (
    ("stem", r"backbone/(conv1|stem)"),
    ("c2", r"/layer1_"),
    ("c3", r"/layer2_"),
    ("c4", r"/layer3_"),
    ("c5", r"/layer4_"),
    ("FPN", r"/neck/"),
    ("interactive convolutions", r"/inter_"),
    ("decompositions", r"_decomposition([./]|$)|_alignment_0|bhw[io],bio->|bhwi,bhwo->bio"),
    ("predictions", r"/(cls_logits|reg_sides)|_alignment_1"),
)
HEAD, LOSSES = "head, all else: norms, sampling", "assigner and losses"
OPTIMIZER, UNSAID = "optimizer, all else", "copies of no said origin"
REST = (  # of a compiled program
    (HEAD, r"/head/"),
    ("backbone and FPN, all else", r"/(backbone|neck)/"),
    (LOSSES, r"jvp\(\)"),
    (OPTIMIZER, r"."),
    (UNSAID, r""),
)
ENTRANCE = r"layer\d_0/(conv1|downsample_conv)$"  # reads what the stage before it made
SHARED = r"/downsample_conv$|reg_decomposition([./]|$)|_alignment_0$"  # reads a map that another product reads too
SHORTCUT = r"_[1-9]\d*/conv3$"  # adds what its block began with
PEAKS = {  # FLOP/s in bfloat16, bytes/s
    "H200, measured": (790e12, 4.3e12),  # what matrix products and copies reach on one
    **{CHIPS[kind].name: (CHIPS[kind].bfloat16, CHIPS[kind].bandwidth) for kind in ("v5e", "v6e", "v5p")},
}


@dataclass(frozen=True)
class Args(Options):
    """Of the count; --repeats and --seed mean nothing here."""

    batch: int = 16
    """Images a chip: kernels and the optimizer's state are read once for all of them."""
    height: int = 800
    """Canvas height, pixels, a multiple of 32."""
    width: int = 1344
    """Canvas width, pixels, a multiple of 32."""
    classes: int = 80
    """C."""
    hlo: str = ""
    """Text of a training step of --batch images a chip, compiled for a TPU or GPU: `compile_for.py --hlo` writes it."""


@dataclass(frozen=True)
class Work:
    """Of one stage and one step of a chip."""

    multiply_adds: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def __rmul__(self, times: int) -> "Work":
        return Work(times * self.multiply_adds, times * self.bytes)

    def seconds(self, flops: float, bandwidth: float) -> float:
        """The least time at a peak of FLOP/s and bytes/s."""
        return max(2 * self.multiply_adds / flops, self.bytes / bandwidth)


class Network(NamedTuple):
    """What is counted of a network, one image's forward pass."""

    products: list[Product]
    kernels: dict[str, tuple[int, int]]  # (numbers, trained ones) a stage
    trained: int  # parameters in all


def trace(config: Config, args: Args) -> Network:
    """The network on the canvas, traced once."""
    model = build_model(config, args.classes)
    image = jax.ShapeDtypeStruct((1, args.height, args.width, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    traced = jax.make_jaxpr(model.apply)(variables, image)
    kernels: dict[str, tuple[int, int]] = {}
    trained = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        learns = is_trained(path, config.backbone)
        trained += leaf.size * learns
        if stage := stage_of("/" + "/".join(key.key for key in path)):
            count, learning = kernels.get(stage, (0, 0))
            kernels[stage] = (count + leaf.size, learning + leaf.size * learns)
    return Network(list(products(traced.jaxpr)), kernels, trained)


def stage_of(module: str, stages: Sequence[tuple[str, str]] = STAGES) -> str | None:
    """The stage of a module's name, None for none of them."""
    return next((stage for stage, pattern in stages if re.search(pattern, module)), None)


def network_stages(network: Network, args: Args, training: bool, number: int = 2) -> Iterator[tuple[str, Work]]:
    """The network's products stage by stage, in numbers of so many bytes."""
    found, kernels, _ = network
    strays = [one.module for one in found if stage_of(one.module) is None]
    if strays:
        raise SystemExit(f"{R50} is counted; of this network no stage is known for {', '.join(strays)}.")
    learns = False
    for stage, _ in STAGES:
        if stage not in kernels:
            continue
        first, learns = not learns, learns or kernels[stage][1] > 0
        first = first and learns  # nothing before this stage is trained
        total = Work(0, number * kernels[stage][0] * (1 + (training and learns)))
        for one in (one for one in found if stage_of(one.module) == stage):
            shortcut = one.output if re.search(SHORTCUT, one.module) else 0
            total += args.batch * Work(one.multiply_adds, number * (2 * one.output + shortcut))
            if training and learns:
                passes = 1 if first and re.search(ENTRANCE, one.module) else 2  # without or with its input's gradient
                read = 0 if re.search(SHARED, one.module) else passes * one.input
                total += args.batch * Work(passes * one.multiply_adds, number * (one.output + read))
        if stage == "stem":
            total += Work(0, args.batch * args.height * args.width * 3)  # the image, bytes as they come
        yield stage, total


def other_stages(config: Config, network: Network, args: Args, training: bool) -> Iterator[tuple[str, Work]]:
    """What comes after the products: bytes only."""
    cells = args.batch * sum(height * width for height, width in level_shapes(args.height, args.width))
    scores, boxes = 4 * cells * args.classes, 4 * cells * 4
    yield "sampling", Work(0, (4 if training else 2) * boxes + (3 if training else 1) * 2 * boxes)  # sides, 8 offsets
    if training:
        yield "assigner", Work(0, scores + boxes + 6 * 4 * cells)  # predictions → label, weight, box a cell
        yield "losses", Work(0, 2 * (scores + boxes) + 6 * 4 * cells)  # predictions, their gradients, targets
        arrays = 5 + 3 * (config.optimizer.ema_decay is not None)
        yield "optimizer", Work(0, 4 * arrays * network.trained)
    else:
        yield "NMS", Work(0, scores + boxes)


def main(argv: Sequence[str] | None = None) -> Report:
    """Count, print and write."""
    argv = with_config(sys.argv[1:] if argv is None else argv)
    args, config = read_options_and_config(Args, argv, NAME, "Count the least work a stage.")
    report = begin_report(NAME, argv, args, config)
    network = trace(config, args)
    rows: list[dict[str, Any]] = []
    for program, training in (("training", True), ("inference", False)):
        stages = [*network_stages(network, args, training), *other_stages(config, network, args, training)]
        rows += [row_of(program, stage, work, args.batch) for stage, work in stages]
        mine = [row for row in rows if row["program"] == program]
        rows.append({
            "program": program,
            "stage": "all",
            **{name: sum(row[name] for row in mine) for name in ("multiply_adds", "bytes")},
            "seconds": {chip: sum(row["seconds"][chip] for row in mine) for chip in PEAKS},
        })  # fmt: skip
        print_program(f"{program}: {config.name}, {args.height}×{args.width}, {args.batch} images a chip", mine, rows)
    moved = moved_by_stage(Path(args.hlo).read_text(encoding="utf-8"), args.batch) if args.hlo else None
    if moved:
        floor = {row["stage"]: row["bytes"] for row in rows if row["program"] == "training"}
        lines = [[stage, size / 1e6, floor[stage] / 1e6 if stage in floor else None] for stage, size in moved.items()]
        lines.append(["all", sum(moved.values()) / 1e6, floor["all"] / 1e6])
        print_table("HBM traffic of the compiled step, an image", ["stage", "MB", "floor, MB"], lines)
    return finish_report(report, args, results=rows, moved=moved)


def moved_by_stage(text: str, images: int) -> dict[str, float]:
    """Bytes an image that a compiled step moves; a fusion counts where its last operation belongs."""
    stages = (*STAGES, *REST)  # the last one takes everything
    total = dict.fromkeys((stage for stage, _ in stages), 0.0)
    for origin, size in hbm_bytes_by_operation(text).items():
        total[str(stage_of(origin, stages))] += size / images
    return total


def row_of(program: str, stage: str, work: Work, batch: int) -> dict[str, Any]:
    """One stage, an image."""
    seconds = {chip: work.seconds(*peaks) / batch for chip, peaks in PEAKS.items()}
    about = {"multiply_adds": work.multiply_adds / batch, "bytes": work.bytes / batch}
    return {"program": program, "stage": stage, **about, "seconds": seconds}


def print_program(title: str, mine: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """A table of stages, with the sum."""
    header = ["stage", "multiply-adds, G", "MB", *(f"{chip}, ms" for chip in PEAKS)]
    lines = [
        [row["stage"], row["multiply_adds"] / 1e9, row["bytes"] / 1e6, *(1e3 * s for s in row["seconds"].values())]
        for row in (*mine, rows[-1])
    ]
    lines.append(["images/s", None, None, *(1 / seconds for seconds in rows[-1]["seconds"].values())])
    print_table(f"Least work and time an image, {title}", header, lines)


if __name__ == "__main__":
    main()
