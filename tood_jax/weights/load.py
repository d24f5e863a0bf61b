"""Load weights from a run, a .pth or a .safetensors file, and start a new run with them; also by name (download.py)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tood_jax.checkpoint.reader import named_leaves, nest
from tood_jax.config import Config
from tood_jax.distributed.host_sync import broadcast_json
from tood_jax.types import Tree
from tood_jax.weights.conventions import convention_notes
from tood_jax.weights.download import download, is_remote, similar_backbone
from tood_jax.weights.files import WeightsFile, read_weights
from tood_jax.weights.finite import check_finite
from tood_jax.weights.mapping import Tensors, WeightsError, import_tensors
from tood_jax.weights.model_folder import open_model
from tood_jax.weights.naming import Kind, in_backbone, is_ignored, naming_of, recognize_kind
from tood_jax.weights.shapes import DetectorShapes, detector_shapes

_MAX_NAMES = 4  # in a message


class Weights(NamedTuple):
    """The weights of a detector or of its backbone."""

    tensors: Tensors  # flax variables, by flax name
    kind: Kind
    backbone_only: bool
    num_classes: int | None  # None if backbone_only
    left_out: tuple[str, ...]  # tensors of the file that the model does not have
    notes: list[str]  # for the user


def open_source(
    path: str | Path, step: int | Literal["best", "latest"] = "best", log: Callable[[str], object] = print
) -> WeightsFile:
    """Read a file, or the weights of a run or a model folder that `eval.py` would use.

    Args:
        path: the file or folder, or the name of a remote file.
        step: of a run, as in `open_checkpoint`.
        log: called with a line that shows the commit and the checksum of a downloaded file.

    Raises:
        CheckpointError: nothing could be read; WeightsError for files.
    """
    if is_remote(path):
        return read_weights(download(str(path), log).path)
    if not Path(path).is_dir():
        if not Path(path).exists() and (hint := similar_backbone(str(path))):
            raise WeightsError(f"There is no file {path}.{hint}")
        return read_weights(path)
    checkpoint = open_model(path, step)
    weights = "ema" if "ema" in checkpoint.groups else "params"
    groups = [weights, *(group for group in checkpoint.groups if group == "batch_stats")]
    arrays = checkpoint.arrays(*groups)
    trees = {"params": arrays[weights], "batch_stats": arrays.get("batch_stats", {})}
    about: dict[str, Any] = {key: checkpoint.about[key] for key in ("config", "classes") if key in checkpoint.about}
    names = tuple(category["name"] for category in about.get("classes") or ())
    return WeightsFile(named_leaves(trees), names or None, about)


def fit_to_model(source: WeightsFile, where: str, config: Config, shapes: DetectorShapes) -> Weights:
    """Return the tensors of a file as flax variables of the config's model, with the file's number of classes.

    A file without any tensor of the neck and the head is a backbone, and must be complete; only the offsets of
    deformable convolutions may be missing, because they start at zero.

    Raises:
        WeightsError: lists every missing and unexpected tensor and every wrong shape, or the tensors with NaN.
    """
    kind = recognize_kind(source.tensors, where)
    tensors = {name: array for name, array in source.tensors.items() if not is_ignored(name)}
    start = {"flax": ("params/backbone/", "batch_stats/backbone/")}.get(kind, ("backbone.",))
    backbone_only = kind == "torchvision" or all(name.startswith(start) for name in tensors)
    naming = naming_of(kind, config, shapes.one_class, backbone_only=backbone_only)
    count = shapes.count_classes(tensors, naming)
    offsets = [name for name in shapes.one_class if "/conv_offset/" in name] if backbone_only else []
    variables = import_tensors(tensors, naming, shapes.with_classes(count or 1), where, optional=offsets)
    check_finite(variables, where)
    return Weights(
        variables,
        kind,
        backbone_only,
        count,
        tuple(name for name in source.tensors if name not in tensors and not name.endswith("num_batches_tracked")),
        [] if kind == "flax" else convention_notes(where, variables, config.data),
    )


def initial_weights(
    path: str,
    config: Config,
    build: Callable[[int], nn.Module],
    class_names: tuple[str, ...],
    log: Callable[[str], None],
) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
    """Return what --init_from does to a new run: a function from random (params, batch_stats) to initial ones.

    The classifier remains random if the classes of the file differ, in number or in name where the file has names. The
    function logs what was loaded and what was not, and raises WeightsError as `fit_to_model`.

    Args:
        path: a file of weights or a run, or the name of a remote file.
        config: the config of the run.
        build: returns the model for a number of classes.
        class_names: names of the classes of the run, by label.
        log: called with each message.
    """

    def load(params: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
        random = named_leaves({"params": params, "batch_stats": batch_stats})
        source, shapes = open_source(_same_everywhere(path), log=log), detector_shapes(build)
        weights = fit_to_model(source, path, config, shapes)
        loaded, classes = weights.tensors, ""
        if weights.num_classes is not None and classes_differ(weights.num_classes, source.class_names, class_names):
            loaded = {name: array for name, array in loaded.items() if name not in shapes.class_dependent}
            in_file = _describe_classes(weights.num_classes, source.class_names)
            classes = f" ({in_file} in the file, {_describe_classes(0, class_names)} in this run)"
        log(_report(path, weights, loaded, random, classes))
        for note in weights.notes:
            log(f"Note: {note}")
        trees = nest({name: loaded.get(name, leaf) for name, leaf in random.items()})
        return trees["params"], trees.get("batch_stats", {})

    return load


def _same_everywhere(path: str) -> str:
    """Return a name of the same bytes in all processes, because a branch on the Hub may change between downloads."""
    if not is_remote(path) or jax.process_count() == 1:
        return path
    return broadcast_json(lambda: download(path, lambda _: None).exact_name)


def classes_differ(count: int, names: tuple[str, ...] | None, expected: tuple[str, ...]) -> bool:
    """Return whether a file's classes (their number, and their names if it has them) differ from the expected names."""
    return count != len(expected) or (names is not None and len(names) == count and names != expected)


def _report(
    path: str, weights: Weights, loaded: Mapping[str, np.ndarray], random: Mapping[str, Any], classes: str
) -> str:
    """Describe which of the model's tensors were loaded, and which remain random."""
    remaining = [name for name in random if name not in loaded]
    text = f"Loaded {len(loaded)} of {len(random)} tensors from {path}: "
    if weights.backbone_only:
        offsets = [name for name in remaining if in_backbone(name)]
        text += "the whole backbone" + (f" except {_join(offsets)}" if offsets else "")
        text += "; the neck and the head start with random weights."
    elif remaining:
        text += f"backbone, neck and head, but not the classifier{classes}, which starts with random weights: "
        text += f"{_join(remaining)}."
    else:
        text += "backbone, neck and head."
    return text + (f" Not used of the file: {_join(weights.left_out)}." if weights.left_out else "")


def _describe_classes(count: int, names: tuple[str, ...] | None) -> str:
    return f"{len(names)} classes: {_join(names)}" if names else f"{count} classes"


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
