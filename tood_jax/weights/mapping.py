"""Tensors as a file names them ↔ ours, by a table, with every mismatch in one error.

Ours are a flat dictionary by path: "params/backbone/conv1/kernel", kernels in HWIO. PyTorch's kernels lie in OIHW.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from tood_jax.config import Config
from tood_jax.training.checkpoint_files import CheckpointError, named_leaves, nest
from tood_jax.weights.mmdetection import Entry, table

Tensors = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]  # of ours, by name


class WeightsError(CheckpointError):
    """Weights that can't be read, or don't fit; the message lists all that is wrong."""


class Naming(NamedTuple):
    """What a kind of file calls the tensors, and whether its kernels lie in PyTorch's order."""

    entries: tuple[Entry, ...]
    torch_layout: bool = True

    def shape(self, entry: Entry, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of an entry whose whole array has the shape `ours` here."""
        shape = ours if entry.element is None else ours[1:]
        return to_torch_layout(np.broadcast_to(np.int8(0), shape)).shape if self.torch_layout else shape


def name_of(entry: Entry) -> str:
    """An entry's name on our side."""
    return "/".join(entry.path)


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """OIHW kernels become HWIO; anything else stays."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """HWIO kernels become OIHW; anything else stays."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def import_tensors(
    tensors: Mapping[str, np.ndarray],
    naming: Naming,
    shapes: Shapes,
    where: str,
    *,
    optional: Collection[str] = (),
) -> Tensors:
    """Ours, of a file's tensors.

    Args:
        tensors: by the file's names.
        naming: what should be there.
        shapes: what shape each of ours must have.
        where: the file, for the error.
        optional: of ours, those that may be missing.

    Raises:
        WeightsError: lists every missing, unexpected and ill-shaped tensor, shapes in the file's layout.
    """
    problems: list[str] = []
    pieces: dict[str, list[np.ndarray]] = {}
    for entry in naming.entries:
        ours, name = name_of(entry), entry.torch_name
        wanted = naming.shape(entry, shapes[ours])
        if name not in tensors:
            if ours not in optional:
                problems.append(f"missing: {name} {_spell(wanted)}")
        elif tensors[name].shape == wanted:
            array = np.asarray(tensors[name])
            pieces.setdefault(ours, []).append(from_torch_layout(array) if naming.torch_layout else array)
        else:
            problems.append(f"ill-shaped: {name} is {_spell(tensors[name].shape)}, should be {_spell(wanted)}")
    known = {entry.torch_name for entry in naming.entries}
    problems += [f"unexpected: {name} {_spell(array.shape)}" for name, array in tensors.items() if name not in known]
    if problems:
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''} don't fit the config's model"
        raise WeightsError("\n  ".join([f"{where}: {count}:", *problems]))
    whole = {name_of(entry) for entry in naming.entries if entry.element is None}
    return {name: found[0] if name in whole else np.stack(found) for name, found in pieces.items()}


def export_tensors(ours: Mapping[str, Any], naming: Naming) -> Tensors:
    """The way back: every entry's tensor by the file's name and in its layout."""
    tensors = {}
    for entry in naming.entries:
        array = np.asarray(ours[name_of(entry)])
        array = array if entry.element is None else array[entry.element]
        tensors[entry.torch_name] = to_torch_layout(array) if naming.torch_layout else array
    return tensors


def import_state_dict(state_dict: Mapping[str, np.ndarray], config: Config, shapes: Shapes | None = None) -> Any:
    """Flax variables {"params": …, "batch_stats": …} from an mmdetection state dict of numpy arrays.

    `shapes`: see `shapes.variable_shapes`; without them any shape will do. Raises WeightsError as `import_tensors`.
    """
    naming = Naming(table(config))
    tensors = {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}
    if shapes is None:
        shapes = _shapes_of(tensors, naming)
    return nest(import_tensors(tensors, naming, shapes, config.name))


def export_state_dict(variables: Mapping[str, Any], config: Config) -> Tensors:
    """The way back: flax variables (or anything shaped like them, gradients say) to mmdetection's names and layouts."""
    return export_tensors(named_leaves(variables), Naming(table(config)))


def _shapes_of(tensors: Mapping[str, np.ndarray], naming: Naming) -> dict[str, tuple[int, ...]]:
    """The shapes that ours would have of the tensors there are; () for the missing ones."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in naming.entries:
        array = from_torch_layout(np.asarray(tensors.get(entry.torch_name, np.float32(0))))
        shapes[name_of(entry)] = array.shape if entry.element is None else (0, *array.shape)
    return shapes


def _spell(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
