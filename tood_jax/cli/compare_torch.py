"""compare_torch.py: our network and a PyTorch peer on the same weights and batches, number by number."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from tood_jax.build import build_model
from tood_jax.cli.common import said_in_one_sentence, use_compilation_cache
from tood_jax.cli.options import parse
from tood_jax.config import Config, ConfigError
from tood_jax.torch_reference.comparison import tables
from tood_jax.torch_reference.comparison.differences import (
    DOUBLE,
    SINGLE,
    Difference,
    Tolerances,
    detection_differences,
    difference,
    gradient_differences,
)
from tood_jax.torch_reference.comparison.double import import_in_double, is_double
from tood_jax.torch_reference.comparison.inputs import made_batch, made_weights
from tood_jax.torch_reference.comparison.ours import Ours
from tood_jax.torch_reference.comparison.sides import PHASES, Forward, Side
from tood_jax.training.checkpoint_files import nest
from tood_jax.types import Batch
from tood_jax.weights.load import fit, open_source
from tood_jax.weights.mapping import WeightsError, export_tensors, import_state_dict
from tood_jax.weights.naming import naming_of
from tood_jax.weights.shapes import detector_shapes

PROG = "compare_torch.py"
SHOWN = 20  # of those that exceed their tolerance


@dataclass(frozen=True)
class Args:
    checkpoint: str = ""
    """Weights of a detector: .pth or .safetensors (mmdetection's, the authors' or ours), or a run's folder; empty makes
    random ones of the seed."""
    image: tuple[str, ...] = ()
    """Image files, fitted into the canvas; none makes patches of noise. Objects are made up in either case."""
    height: int = 128
    """Of the canvas, pixels, a multiple of 32."""
    width: int = 160
    """Of the canvas, pixels, a multiple of 32."""
    batch: int = 2
    """Images made, if none are given."""
    num_classes: int = 80
    """With random weights; a checkpoint knows its own."""
    seed: int = 0
    """Of random weights, images and objects."""
    steps: int = 3
    """SGD steps of each trajectory, each on a batch of its own; 0 for none."""
    learning_rate: float = 1e-5
    """Of the trajectory, constant; momentum and weight decay are the config's."""
    peer: Literal["torch_reference", "mmdet"] = "torch_reference"
    """What to compare with: the plain PyTorch TOOD of this package, or mmdetection where it is installed."""
    precision: Literal["single", "double"] = "single"
    """double computes both sides in float64, where next to no rounding is left that could hide or fake a difference."""
    maps_tolerance: float | None = None
    """Largest relative difference of features, scores and boxes; None takes what fits the precision (docs)."""
    losses_tolerance: float | None = None
    """The same for losses."""
    gradients_tolerance: float | None = None
    """The same for the gradient of each parameter."""
    whole_gradient_tolerance: float | None = None
    """The same for all gradients together."""
    detections_tolerance: float | None = None
    """The same for detections' scores and boxes."""
    trajectory_tolerance: float | None = None
    """The same for the losses along a trajectory."""
    json: str = ""
    """Also write all differences to this file."""


class Weights(NamedTuple):
    """The same weights for both sides."""

    ours: Any  # flax variables
    theirs: Mapping[str, np.ndarray]  # by mmdetection's names
    num_classes: int
    class_names: tuple[str, ...]
    said: str


def main(argv: list[str] | None = None) -> None:
    """The door `compare_torch.py`; exit status 0 if all is within tolerance, 1 if not, 2 for wrong options."""
    argv = sys.argv[1:] if argv is None else argv
    args, config = parse(Args, argv, prog=PROG, description=__doc__ or "")
    if args.precision == "double" and not is_double():
        import_in_double(__name__ if __name__ != "__main__" else "tood_jax.cli.compare_torch").main(argv)
        return
    use_compilation_cache()
    with said_in_one_sentence(PROG):
        found = compare(args, config)
        if args.json:
            write_json(Path(args.json), args, config, found)
    outside = sorted((one for one in found if not one.within), key=lambda one: -one.relative)
    for one in outside[:SHOWN]:
        print(f"{one.group}, {one.name}: {one.relative:.1e} exceeds {one.tolerance:.0e}")
    if len(outside) > SHOWN:
        print(f"… and {len(outside) - SHOWN} more")
    print(
        f"{len(outside)} of {len(found)} comparisons exceed their tolerance."
        if outside
        else f"All {len(found)} comparisons are within tolerance."
    )
    raise SystemExit(1 if outside else 0)


def compare(args: Args, config: Config) -> list[Difference]:
    """Ask both sides everything, print the answers side by side, and return all differences.

    Raises:
        ConfigError, WeightsError, BrokenImageError: in one sentence.
    """
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("This comparison needs PyTorch: pip install 'tood_jax[torch]' (its CPU build will do).")
    if min(args.height, args.width) < 32 or args.height % 32 or args.width % 32 or args.batch < 1 or args.steps < 0:
        raise ConfigError("--height and --width must be multiples of 32, --batch at least 1 and --steps at least 0.")
    weights = load_weights(args, config)
    ours, peer = make_sides(args, config, weights)
    print(f"{config.name}: {ours.name} on {jax.devices()[0].platform} against {peer.name}, {args.precision} precision")
    print(f"Weights: {weights.said}")
    print("Relative: the largest difference over the peer's largest value; of gradients, norm over norm.\n", flush=True)

    tolerances = tolerances_of(args)
    batches = [
        made_batch(args.batch, args.height, args.width, weights.num_classes, args.seed + i, args.image)
        for i in range(max(1, args.steps))
    ]
    found = compare_forward(ours.forward(batches[0]), peer.forward(batches[0]), tolerances, config, weights.class_names)
    for phase, aligned in PHASES.items():
        found += compare_learning(ours, peer, batches[0], phase, aligned, tolerances)
    for phase, aligned in PHASES.items() if args.steps else ():
        found += compare_trajectories(ours, peer, batches, phase, aligned, tolerances)
    return found


def compare_forward(
    ours: Forward, peer: Forward, tolerances: Tolerances, config: Config, names: Sequence[str]
) -> list[Difference]:
    """Every map from the normalised image to boxes, and each image's detections."""
    found = [difference("maps", name, ours.maps[name], peer.maps[name], tolerances.maps) for name in peer.maps]
    print(tables.maps_table(found), "\n", flush=True)
    floor, limit = config.detect.score_threshold, config.detect.max_detections
    for i, (a, b) in enumerate(zip(ours.detections, peer.detections, strict=True)):
        new = detection_differences(a, b, i, tolerances.detections, floor=floor, limit=limit)
        print(f"Image {i}: {len(a.scores)} detections, the peer {len(b.scores)}; {_apart(new)}. The best:")
        print(tables.detections_table(a, b, names), "\n", flush=True)
        found += new
    return found


def compare_learning(
    ours: Side, peer: Side, batch: Batch, phase: str, aligned: bool, tolerances: Tolerances
) -> list[Difference]:
    """One phase's assignment, losses and gradients."""
    a, b = ours.learn(batch, aligned), peer.learn(batch, aligned)
    losses = [
        difference(f"losses {phase}", part, a.losses[part], b.losses[part], tolerances.losses) for part in b.losses
    ]
    print(f"Phase {phase}" + _assigned(a.gt_index, b.gt_index))
    print(tables.losses_table(a.losses, b.losses, losses))
    gradients = gradient_differences(f"gradients {phase}", a.gradients, b.gradients, tolerances)
    print(tables.gradients_table(gradients), "\n", flush=True)
    return [*losses, *gradients]


def compare_trajectories(
    ours: Side, peer: Side, batches: list[Batch], phase: str, aligned: bool, tolerances: Tolerances
) -> list[Difference]:
    """Losses along SGD steps, each side on its own updates."""
    a, b = ours.trajectory(batches, aligned), peer.trajectory(batches, aligned)
    found = [
        difference(f"trajectory {phase}", f"step {i + 1}", a[i], b[i], tolerances.trajectory) for i in range(len(b))
    ]
    print(f"Trajectory of SGD in phase {phase}")
    print(tables.trajectory_table(a, b, found), "\n", flush=True)
    return found


def load_weights(args: Args, config: Config) -> Weights:
    """Of the checkpoint, or made. A file of mmdetection's goes to the peer as it is, not by way of our names."""
    shapes = detector_shapes(lambda num_classes: build_model(config, num_classes))
    if not args.checkpoint:
        ours = shapes.with_classes(args.num_classes)
        naming = naming_of("mmdetection", config, ours)
        theirs = {one.torch_name: naming.shape(one, ours["/".join(one.path)]) for one in naming.entries}
        made = made_weights(theirs, args.seed)
        said = f"random, seed {args.seed}, {len(made)} tensors"
        return Weights(import_state_dict(made, config, ours), made, args.num_classes, (), said)
    source = open_source(args.checkpoint)
    weights = fit(source, args.checkpoint, config, shapes)
    if weights.num_classes is None:
        raise WeightsError(f"{args.checkpoint} is a backbone alone; name a whole detector's weights.")
    naming = naming_of("mmdetection", config, shapes.one)
    theirs_ = export_tensors(weights.tensors, naming)
    if weights.kind == "mmdetection":
        theirs_ = {name: source.tensors[name] for name in theirs_}
    said = f"{args.checkpoint} ({weights.kind}), {len(theirs_)} tensors"
    return Weights(nest(weights.tensors), theirs_, weights.num_classes, source.class_names or (), said)


def make_sides(args: Args, config: Config, weights: Weights) -> tuple[Side, Side]:
    """Ours and the peer, with their weights."""
    from tood_jax.torch_reference.comparison.mmdetection import MMDetection
    from tood_jax.torch_reference.comparison.plain_torch import PlainTorch, TorchSide

    if args.peer == "mmdet" and args.precision == "double":
        raise ConfigError("mmdetection casts boxes to float32 itself: --precision double needs --peer torch_reference.")
    network = (MMDetection if args.peer == "mmdet" else PlainTorch)(config, weights.num_classes)
    ours = Ours(build_model(config, weights.num_classes), weights.ours, config, args.learning_rate)
    return ours, TorchSide(args.peer, network, weights.theirs, config, args.learning_rate)


def tolerances_of(args: Args) -> Tolerances:
    """Those of the precision, but for what the options say."""
    given = {name: getattr(args, f"{name}_tolerance") for name in Tolerances._fields}
    usual = DOUBLE if args.precision == "double" else SINGLE
    return usual._replace(**{name: value for name, value in given.items() if value is not None})


def write_json(path: Path, args: Args, config: Config, found: Sequence[Difference]) -> None:
    """All differences, worst first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**one._asdict(), "within": one.within} for one in sorted(found, key=lambda one: -one.relative)]
    about = {"config": config.name, "peer": args.peer, "precision": args.precision, "checkpoint": args.checkpoint}
    path.write_text(json.dumps({**about, "differences": rows}, indent=1) + "\n", encoding="utf-8")


def _apart(found: Sequence[Difference]) -> str:
    missing, scores, boxes = found
    return f"{missing.absolute:g} only on one side, scores {scores.relative:.1e} and boxes {boxes.relative:.1e} apart"


def _assigned(ours: np.ndarray | None, peer: np.ndarray | None) -> str:
    if ours is None or peer is None:
        return ""
    return f": {int((ours >= 0).sum())} cells have an object, {int((ours != peer).sum())} of {ours.size} another one"
