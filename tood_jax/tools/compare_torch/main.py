"""compare_torch.py: compare this package's network with a PyTorch peer on the same weights and batches."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.checkpoint.reader import nest
from tood_jax.cli.command_line import parse
from tood_jax.cli.common import report_errors, use_compilation_cache
from tood_jax.cli.outputs import check_output_file, starts_with_keys
from tood_jax.config import Config, ConfigError
from tood_jax.files import write_atomically
from tood_jax.models.build import build_model
from tood_jax.tools.compare_torch import tables
from tood_jax.tools.compare_torch.differences import (
    DOUBLE,
    SINGLE,
    Difference,
    Tolerances,
    detection_differences,
    difference,
    gradient_differences,
)
from tood_jax.tools.compare_torch.implementation import PHASES, ForwardResult, Implementation
from tood_jax.tools.compare_torch.inputs import example_batch, random_weights
from tood_jax.tools.compare_torch.jax_implementation import JaxImplementation
from tood_jax.types import Batch
from tood_jax.untrusted.terminal import print_line
from tood_jax.weights.load import fit_to_model, open_source
from tood_jax.weights.mapping import WeightsError, export_tensors, flax_name, import_state_dict
from tood_jax.weights.naming import naming_of
from tood_jax.weights.shapes import detector_shapes

PROG = "compare_torch.py"
MAX_LISTED = 20  # differences that exceed their tolerance


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Weights of a detector: .pth or .safetensors (mmdetection's, the authors' or flax names), or a run's folder; empty
    for random weights."""
    image: tuple[str, ...] = ()
    """Image files, resized to fit the canvas; patches of noise by default. Objects are random in both cases."""
    height: int = 128
    """Height of the canvas in pixels, a multiple of 32."""
    width: int = 160
    """Width of the canvas in pixels, a multiple of 32."""
    batch: int = 2
    """Number of images of noise."""
    num_classes: int = 80
    """Number of classes of random weights; a checkpoint has its own."""
    seed: int = 0
    """Seed of random weights, images and objects."""
    steps: int = 3
    """SGD steps of each trajectory, each on another batch; 0 for none."""
    learning_rate: float = 1e-5
    """Constant learning rate of the trajectory; momentum and weight decay are the config's."""
    peer: Literal["torch_reference", "mmdet"] = "torch_reference"
    """The peer: the plain PyTorch TOOD of this package, or mmdetection if it is installed."""
    precision: Literal["single", "double"] = "single"
    """double computes both in float64, where rounding is too small to hide or cause a difference."""
    maps_tolerance: float | None = None
    """Largest relative difference of features, scores and boxes; None for the default of the precision (docs)."""
    losses_tolerance: float | None = None
    """The same for losses."""
    gradients_tolerance: float | None = None
    """The same for the gradient of each parameter."""
    whole_gradient_tolerance: float | None = None
    """The same for all gradients together."""
    detections_tolerance: float | None = None
    """The same for the scores and boxes of detections."""
    trajectory_tolerance: float | None = None
    """The same for the losses along a trajectory."""
    json: str = ""
    """Also write all differences to this file."""


class Weights(NamedTuple):
    """The same weights for both implementations."""

    variables: Any  # flax variables
    state_dict: Mapping[str, np.ndarray]  # by mmdetection's names
    num_classes: int
    class_names: tuple[str, ...]
    description: str


def main(argv: list[str] | None = None, prog: str = PROG) -> None:
    """Run `compare_torch.py`; exit status 0 if all is within tolerance, 1 if not, 2 for invalid options."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = parse(Args, argv, prog=prog, description=__doc__ or "")
    use_compilation_cache()
    with report_errors(prog):
        if args.json:
            is_own_format = starts_with_keys("config", "peer", "precision")
            check_output_file("--json", args.json, is_own_format, [args.checkpoint, *args.image])
        with jax.enable_x64(args.precision == "double"):
            found = compare(args, config)
        if args.json:
            write_json(Path(args.json), args, config, found)
    outside = sorted((row for row in found if not row.within), key=lambda row: -row.relative)
    for row in outside[:MAX_LISTED]:
        print_line(f"{row.group}, {row.name}: {row.relative:.1e} exceeds {row.tolerance:.0e}")
    if len(outside) > MAX_LISTED:
        print_line(f"… and {len(outside) - MAX_LISTED} more")
    print_line(
        f"{len(outside)} of {len(found)} comparisons exceed their tolerance."
        if outside
        else f"All {len(found)} comparisons are within tolerance."
    )
    raise SystemExit(1 if outside else 0)


def compare(args: Args, config: Config) -> list[Difference]:
    """Run both implementations, print their results, and return all differences.

    Raises:
        ConfigError: an option or the config is not supported.
        WeightsError: the weights can't be used.
        BrokenImageError: an image can't be read.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("This comparison needs PyTorch: pip install 'torch>=2.6' (the CPU build is enough).")
    if min(args.height, args.width) < 32 or args.height % 32 or args.width % 32 or args.batch < 1 or args.steps < 0:
        raise ConfigError("--height and --width must be multiples of 32, --batch at least 1 and --steps at least 0.")
    weights = load_weights(args, config)
    own, peer = make_implementations(args, config, weights)
    print_line(
        f"{config.name}: {own.name} on {jax.devices()[0].platform} against {peer.name}, {args.precision} precision"
    )
    print_line(f"Weights: {weights.description}")
    print_line("Relative: the largest difference over the peer's largest value; for gradients, of the norms.\n")

    tolerances = tolerances_of(args)
    batches = [
        example_batch(args.batch, args.height, args.width, weights.num_classes, args.seed + i, args.image)
        for i in range(max(1, args.steps))
    ]
    found = compare_forward(own.forward(batches[0]), peer.forward(batches[0]), tolerances, config, weights.class_names)
    for phase, in_tal_phase in PHASES.items():
        found += compare_training(own, peer, batches[0], phase, in_tal_phase, tolerances)
    for phase, in_tal_phase in PHASES.items() if args.steps else ():
        found += compare_trajectories(own, peer, batches, phase, in_tal_phase, tolerances)
    return found


def compare_forward(
    own: ForwardResult, peer: ForwardResult, tolerances: Tolerances, config: Config, names: Sequence[str]
) -> list[Difference]:
    """Compare every map from the normalized image to the boxes, and the detections of each image."""
    found = [difference("maps", name, own.maps[name], peer.maps[name], tolerances.maps) for name in peer.maps]
    print_line(tables.maps_table(found) + "\n")
    floor, limit = config.detect.score_threshold, config.detect.max_detections
    for i, (a, b) in enumerate(zip(own.detections, peer.detections, strict=True)):
        new = detection_differences(a, b, i, tolerances.detections, floor=floor, limit=limit)
        print_line(
            f"Image {i}: {len(a.scores)} detections, the peer {len(b.scores)}; {_describe_detections(new)}. The best:"
        )
        print_line(tables.detections_table(a, b, names) + "\n")
        found += new
    return found


def compare_training(
    own: Implementation, peer: Implementation, batch: Batch, phase: str, in_tal_phase: bool, tolerances: Tolerances
) -> list[Difference]:
    """Compare assignment, losses and gradients in one phase."""
    a, b = own.losses_and_gradients(batch, in_tal_phase), peer.losses_and_gradients(batch, in_tal_phase)
    losses = [
        difference(f"losses {phase}", part, a.losses[part], b.losses[part], tolerances.losses) for part in b.losses
    ]
    print_line(f"Phase {phase}" + _describe_assignment(a.gt_index, b.gt_index))
    print_line(tables.losses_table(a.losses, b.losses, losses))
    gradients = gradient_differences(f"gradients {phase}", a.gradients, b.gradients, tolerances)
    print_line(tables.gradients_table(gradients) + "\n")
    return [*losses, *gradients]


def compare_trajectories(
    own: Implementation,
    peer: Implementation,
    batches: list[Batch],
    phase: str,
    in_tal_phase: bool,
    tolerances: Tolerances,
) -> list[Difference]:
    """Compare the losses along SGD steps, where each implementation applies its own updates."""
    a, b = own.trajectory(batches, in_tal_phase), peer.trajectory(batches, in_tal_phase)
    found = [
        difference(f"trajectory {phase}", f"step {i + 1}", a[i], b[i], tolerances.trajectory) for i in range(len(b))
    ]
    print_line(f"Trajectory of SGD in phase {phase}")
    print_line(tables.trajectory_table(a, b, found) + "\n")
    return found


def load_weights(args: Args, config: Config) -> Weights:
    """Return random weights or those of the checkpoint; the peer receives a file of mmdetection without conversion."""
    shapes = detector_shapes(lambda num_classes: build_model(config, num_classes))
    if not args.checkpoint:
        flax_shapes = shapes.with_classes(args.num_classes)
        naming = naming_of("mmdetection", config, flax_shapes)
        torch_shapes = {
            entry.torch_name: naming.shape_in_file(entry, flax_shapes[flax_name(entry)]) for entry in naming.entries
        }
        state_dict = random_weights(torch_shapes, args.seed)
        variables = import_state_dict(state_dict, config, flax_shapes)
        description = f"random, seed {args.seed}, {len(state_dict)} tensors"
        return Weights(variables, state_dict, args.num_classes, (), description)
    source = open_source(args.checkpoint)
    weights = fit_to_model(source, args.checkpoint, config, shapes)
    if weights.num_classes is None:
        raise WeightsError(f"{args.checkpoint} is only a backbone; name the weights of a whole detector.")
    naming = naming_of("mmdetection", config, shapes.one_class)
    state_dict = export_tensors(weights.tensors, naming)
    if weights.kind == "mmdetection":
        state_dict = {name: source.tensors[name] for name in state_dict}
    description = f"{args.checkpoint} ({weights.kind}), {len(state_dict)} tensors"
    return Weights(nest(weights.tensors), state_dict, weights.num_classes, source.class_names or (), description)


def make_implementations(args: Args, config: Config, weights: Weights) -> tuple[Implementation, Implementation]:
    """JaxImplementation and the peer, with their weights."""
    import torch

    from tood_jax.tools.compare_torch.mmdetection import MMDetection
    from tood_jax.tools.compare_torch.torch_implementation import ReferenceNetwork, TorchImplementation

    if args.peer == "mmdet" and args.precision == "double":
        raise ConfigError("mmdetection casts boxes to float32 itself: --precision double needs --peer torch_reference.")
    is_double = args.precision == "double"
    model = build_model(config, weights.num_classes, dtype=jnp.float64 if is_double else None)
    own = JaxImplementation(
        model, weights.variables, config, args.learning_rate, jnp.float64 if is_double else jnp.float32
    )
    network: Any
    if args.peer == "mmdet":
        network = MMDetection(config, weights.num_classes)
    else:
        network = ReferenceNetwork(config, weights.num_classes, torch.float64 if is_double else torch.float32)
    return own, TorchImplementation(args.peer, network, weights.state_dict, config, args.learning_rate)


def tolerances_of(args: Args) -> Tolerances:
    """Return the tolerances of the precision, with those of the options."""
    given = {name: getattr(args, f"{name}_tolerance") for name in Tolerances._fields}
    default = DOUBLE if args.precision == "double" else SINGLE
    return default._replace(**{name: value for name, value in given.items() if value is not None})


def write_json(path: Path, args: Args, config: Config, found: Sequence[Difference]) -> None:
    """Write all differences, the largest first."""
    rows = [{**row._asdict(), "within": row.within} for row in sorted(found, key=lambda row: -row.relative)]
    about = {"config": config.name, "peer": args.peer, "precision": args.precision, "checkpoint": args.checkpoint}
    write_atomically(path, f"{json.dumps({**about, 'differences': rows}, indent=1)}\n".encode())


def _describe_detections(found: Sequence[Difference]) -> str:
    missing, scores, boxes = found
    differences = f"differences of scores {scores.relative:.1e} and of boxes {boxes.relative:.1e}"
    return f"{missing.absolute:g} in only one, {differences}"


def _describe_assignment(own: np.ndarray | None, peer: np.ndarray | None) -> str:
    if own is None or peer is None:
        return ""
    return f": {int((own >= 0).sum())} locations have an object, {int((own != peer).sum())} of {own.size} differ"
