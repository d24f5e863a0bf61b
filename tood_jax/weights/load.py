"""Weights from a run, a .pth or a .safetensors under our names, and what of a new run they replace."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import numpy as np

from tood_jax.config import Config
from tood_jax.training.checkpoint_files import named_leaves, nest, open_checkpoint
from tood_jax.weights.conventions import convention_notes
from tood_jax.weights.files import WeightsFile, read_weights
from tood_jax.weights.mapping import Tensors, import_tensors
from tood_jax.weights.naming import Kind, in_backbone, is_ignored, naming_of, recognise
from tood_jax.weights.shapes import DetectorShapes, detector_shapes

Tree = Any
_SHOWN = 4  # names in a message


class Weights(NamedTuple):
    """A detector's weights or its backbone's."""

    tensors: Tensors  # ours
    kind: Kind
    backbone_only: bool
    num_classes: int | None  # None if backbone_only
    left_out: tuple[str, ...]  # tensors of the file that have no place here
    notes: list[str]  # what the user should know of them


def open_source(path: str | Path, step: int | Literal["best", "latest"] = "best") -> WeightsFile:
    """What a file holds, or a run (its folder or a step's): the weights that `eval.py` would take.

    Raises WeightsError or another CheckpointError, in one sentence.
    """
    if not Path(path).is_dir():
        return read_weights(path)
    checkpoint = open_checkpoint(path, step)
    weights = "ema" if "ema" in checkpoint.groups else "params"
    groups = [weights, *(group for group in checkpoint.groups if group == "batch_stats")]
    arrays = checkpoint.arrays(*groups)
    trees = {"params": arrays[weights], "batch_stats": arrays.get("batch_stats", {})}
    about = {name: checkpoint.about[name] for name in ("config", "classes")}
    return WeightsFile(named_leaves(trees), tuple(one["name"] for one in about["classes"]), about)


def fit(source: WeightsFile, where: str, config: Config, shapes: DetectorShapes) -> Weights:
    """The source's tensors under our names, held against the config's model with as many classes as the source has.

    A source without any tensor of the neck and the head is a backbone, and must be a whole one (only the offsets of
    deformable convolutions may be missing: they start at zero).

    Raises:
        WeightsError: one error that lists every missing, unexpected and ill-shaped tensor.
    """
    kind = recognise(source.tensors, where)
    tensors = {name: array for name, array in source.tensors.items() if not is_ignored(name)}
    start = {"flax": ("params/backbone/", "batch_stats/backbone/")}.get(kind, ("backbone.",))
    backbone_only = kind == "torchvision" or all(name.startswith(start) for name in tensors)
    naming = naming_of(kind, config, shapes.one, backbone_only=backbone_only)
    count = shapes.count_classes(tensors, naming)
    offsets = [name for name in shapes.one if "/conv_offset/" in name] if backbone_only else []
    ours = import_tensors(tensors, naming, shapes.with_classes(count or 1), where, optional=offsets)
    return Weights(
        ours,
        kind,
        backbone_only,
        count,
        tuple(name for name in source.tensors if name not in tensors and not name.endswith("num_batches_tracked")),
        [] if kind == "flax" else convention_notes(where, ours, config.data),
    )


def start_from(
    path: str,
    config: Config,
    build: Callable[[int], nn.Module],
    class_names: tuple[str, ...],
    say: Callable[[str], None],
) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
    """What a run does with --init_from: a function from fresh (params, batch_stats) to those it starts with.

    The classifier stays fresh if the file's classes differ from `class_names` (in number, or by name where the file
    names them). What was loaded and what was not is said. The function raises WeightsError as `fit` does.
    """

    def start(params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
        fresh = named_leaves({"params": params, "batch_stats": batch_stats})
        source, shapes = open_source(path), detector_shapes(build)
        weights = fit(source, path, config, shapes)
        loaded, classes = weights.tensors, ""
        if weights.num_classes is not None and differ(weights.num_classes, source.class_names, class_names):
            loaded = {name: array for name, array in loaded.items() if name not in shapes.of_classes}
            classes = f" ({_classes(weights.num_classes, source.class_names)} there, {_classes(0, class_names)} here)"
        say(_report(path, weights, loaded, fresh, classes))
        for note in weights.notes:
            say(f"Note: {note}")
        trees = nest({name: loaded.get(name, leaf) for name, leaf in fresh.items()})
        return trees["params"], trees.get("batch_stats", {})

    return start


def differ(count: int, names: tuple[str, ...] | None, here: tuple[str, ...]) -> bool:
    """Whether a file's classes (their number, and their names by label if it has them) are others than those here."""
    return count != len(here) or (names is not None and len(names) == count and names != here)


def _report(
    path: str, weights: Weights, loaded: Mapping[str, np.ndarray], fresh: Mapping[str, Any], classes: str
) -> str:
    anew = [name for name in fresh if name not in loaded]
    text = f"Loaded {len(loaded)} of {len(fresh)} tensors from {path}: "
    if weights.backbone_only:
        offsets = [name for name in anew if in_backbone(name)]
        text += "the whole backbone" + (f" but {_list(offsets)}" if offsets else "")
        text += "; the neck and the head start anew."
    else:
        text += "backbone, neck and head"
        text += f", but not the classifier{classes}, which starts anew: {_list(anew)}." if anew else "."
    return text + (f" Not used of the file: {_list(weights.left_out)}." if weights.left_out else "")


def _classes(count: int, names: tuple[str, ...] | None) -> str:
    return f"{len(names)} classes: {_list(names)}" if names else f"{count} classes"


def _list(names: Any) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
