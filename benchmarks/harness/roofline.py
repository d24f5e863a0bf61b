"""The least work of one training or detection step, stage by stage, counted from the traced network.

Nothing is compiled or computed. All rules are lower bounds:

- A map between two linear operations (convolution or matrix product) is written once and read once, however many
  operations need it; norms, ReLUs, biases, resizing and concatenation are fused with them. The shortcut of a residual
  block is read once more. Kernels are read once per pass.
- In the backward pass a trained linear operation reads its input and the gradient of its output, and writes the
  gradient of its input, at twice its multiply-adds. Where nothing before it is trained, it writes no gradient of its
  input, at once its multiply-adds. Operations that share their input read it, and write its gradient, once.
- A frozen linear operation has no backward pass.
- Scores, boxes and targets are float32, 4 bytes; each is read or written once by each stage that needs it.
- SGD reads gradient, parameter and momentum and writes two of them, in float32; the update of an average does the same.
- A stage takes the time of its operations at the chip's peak or the time of its bytes, whichever is longer; stages
  follow one another.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness.options import R50
from tood_jax.config import Config
from tood_jax.geometry.locations import level_shapes
from tood_jax.models.build import build_model
from tood_jax.tools.compile_for.traffic import hbm_bytes_by_operation
from tood_jax.tools.multiply_adds import LinearOperation, linear_operations
from tood_jax.training.optimizer import is_trained

# (stage, pattern of its modules), first match wins. Stages 1–4 of the backbone are c2–c5.
NETWORK_STAGES = (
    ("stem", r"backbone/(conv1|stem)"),
    ("c2", r"/layer1_"),
    ("c3", r"/layer2_"),
    ("c4", r"/layer3_"),
    ("c5", r"/layer4_"),
    ("FPN", r"/neck/"),
    ("interactive convolutions", r"/inter_"),
    (
        "decompositions",
        r"_decomposition([./]|$)|_alignment_0|bhw[io],bio->|bhwi,bhwo->bio"
        r"|/head\.predict(/(conv_general_dilated|dot_general))?$",  # reduce_features
    ),
    ("predictions", r"/(cls_logits|reg_sides)|_alignment_1"),
)
HEAD, LOSSES = "head, all else: norms, sampling", "assigner and losses"
OPTIMIZER, UNKNOWN_ORIGIN = "optimizer, all else", "copies of unknown origin"
# Of a compiled program; the last stage matches everything.
PROGRAM_STAGES = (
    *NETWORK_STAGES,
    (HEAD, r"/head/"),
    ("backbone and FPN, all else", r"/(backbone|neck)/"),
    (LOSSES, r"jvp\(\)"),
    (OPTIMIZER, r"."),
    (UNKNOWN_ORIGIN, r""),
)
FIRST_OF_STAGE = r"layer\d_0/(conv1|downsample_conv)$"  # reads the output of the stage before it
SHARED_INPUT = r"/downsample_conv$|reg_decomposition([./]|$)|_alignment_0$"  # reads a map that another operation reads
REDUCTION = r"/head\.predict$"  # reduce_features: up to four operations on the same map follow one another
ADDS_SHORTCUT = r"_[1-9]\d*/conv3$"  # adds the input of its block


class StepSizes(NamedTuple):
    """Sizes of one step on one chip."""

    batch: int  # images: kernels and the optimizer's state are read once for all of them
    height: int  # pixels, a multiple of 32
    width: int  # pixels, a multiple of 32
    classes: int


@dataclass(frozen=True)
class Work:
    """Work of one stage in one step of a chip."""

    multiply_adds: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def __rmul__(self, times: int) -> "Work":
        return Work(times * self.multiply_adds, times * self.bytes)

    def seconds(self, flops: float, bandwidth: float) -> float:
        """Return the least time at a peak of FLOP/s and bytes/s."""
        return max(2 * self.multiply_adds / flops, self.bytes / bandwidth)


class TracedNetwork(NamedTuple):
    """The forward pass of one image."""

    operations: list[LinearOperation]
    kernels: dict[str, tuple[int, int]]  # (parameters, trained parameters) of each stage
    trained_parameters: int  # of the whole network


def trace_network(config: Config, sizes: StepSizes) -> TracedNetwork:
    """Trace the network of a config on a canvas."""
    model = build_model(config, sizes.classes)
    image = jax.ShapeDtypeStruct((1, sizes.height, sizes.width, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    traced = jax.make_jaxpr(model.apply)(variables, image)
    kernels: dict[str, tuple[int, int]] = {}
    trained_parameters = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        trained = leaf.size * is_trained(path, config)
        trained_parameters += trained
        if stage := stage_of("/" + "/".join(key.key for key in path)):
            total, total_trained = kernels.get(stage, (0, 0))
            kernels[stage] = (total + leaf.size, total_trained + trained)
    return TracedNetwork(list(linear_operations(traced.jaxpr)), kernels, trained_parameters)


def stage_of(module: str, stages: Sequence[tuple[str, str]] = NETWORK_STAGES) -> str | None:
    """Return the stage of a module by its name; None if it belongs to none of them."""
    return next((stage for stage, pattern in stages if re.search(pattern, module)), None)


def network_work(
    network: TracedNetwork, sizes: StepSizes, *, training: bool, itemsize: int = 2
) -> Iterator[tuple[str, Work]]:
    """Yield (stage, work) of the network's linear operations.

    Args:
        itemsize: bytes of one number of a map or kernel.
    """
    unknown = [operation.module for operation in network.operations if stage_of(operation.module) is None]
    if unknown:
        raise SystemExit(f"The stages are those of {R50}; this network has others: {', '.join(unknown)}.")
    any_trained = False
    for stage, _ in NETWORK_STAGES:
        if stage not in network.kernels:
            continue
        parameters, trained = network.kernels[stage]
        is_first_trained = not any_trained and trained > 0
        any_trained = any_trained or trained > 0
        backward = training and any_trained
        total = Work(0, itemsize * parameters * (1 + backward))
        for previous, operation in zip([None, *network.operations], network.operations, strict=False):
            if stage_of(operation.module) != stage:
                continue
            shortcut = operation.output if re.search(ADDS_SHORTCUT, operation.module) else 0
            total += sizes.batch * Work(operation.multiply_adds, itemsize * (2 * operation.output + shortcut))
            if backward:
                needs_no_input_gradient = is_first_trained and re.search(FIRST_OF_STAGE, operation.module)
                passes = 1 if needs_no_input_gradient else 2
                read = 0 if _shares_input(operation, previous) else passes * operation.input
                total += sizes.batch * Work(passes * operation.multiply_adds, itemsize * (operation.output + read))
        if stage == "stem":
            total += Work(0, sizes.batch * sizes.height * sizes.width * 3)  # the image, uint8
        yield stage, total


def _shares_input(operation: LinearOperation, previous: LinearOperation | None) -> bool:
    """Return whether an operation reads a map that an operation before it reads too."""
    if previous and previous.module == operation.module and re.search(REDUCTION, operation.module):
        return previous.input == operation.input
    return re.search(SHARED_INPUT, operation.module) is not None


def remaining_work(
    config: Config, network: TracedNetwork, sizes: StepSizes, *, training: bool
) -> Iterator[tuple[str, Work]]:
    """Yield (stage, work) of what follows the linear operations, which is bytes only."""
    locations = sizes.batch * sum(height * width for height, width in level_shapes(sizes.height, sizes.width))
    scores, boxes = 4 * locations * sizes.classes, 4 * locations * 4
    # Box sides, and eight offsets per location.
    yield "sampling", Work(0, (4 if training else 2) * boxes + (3 if training else 1) * 2 * boxes)
    if training:
        yield "assigner", Work(0, scores + boxes + 6 * 4 * locations)  # predictions to label, weight and box
        yield "losses", Work(0, 2 * (scores + boxes) + 6 * 4 * locations)  # predictions, their gradients, targets
        arrays = 5 + 3 * (config.optimizer.ema_decay is not None)
        yield "optimizer", Work(0, 4 * arrays * network.trained_parameters)
    else:
        yield "NMS", Work(0, scores + boxes)


def traffic_by_stage(hlo_text: str, images: int) -> dict[str, float]:
    """Return the bytes per image that a compiled step moves; a fusion belongs to the stage of its last operation."""
    total = dict.fromkeys((stage for stage, _ in PROGRAM_STAGES), 0.0)
    for origin, size in hbm_bytes_by_operation(hlo_text).items():
        total[str(stage_of(origin, PROGRAM_STAGES))] += size / images
    return total
