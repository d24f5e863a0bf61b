"""Convert between the tensors of a file and the variables of the Flax model, by a table of names.

Flax variables are a flat dictionary by flax name, such as "params/backbone/conv1/kernel", with kernels in HWIO; a file
has names of its own, and PyTorch's kernels are in OIHW.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from tood_jax.checkpoint.reader import CheckpointError, named_leaves, nest
from tood_jax.config import Config
from tood_jax.weights.mmdetection import Entry, tensor_table

Tensors = dict[str, np.ndarray]
_MAX_PROBLEMS = 1000  # listed in an error
Shapes = Mapping[str, tuple[int, ...]]  # of flax variables, by flax name


class WeightsError(CheckpointError):
    """Weights that can't be read or don't match the model; the message lists every problem."""


class Naming(NamedTuple):
    """Names of the tensors in a kind of file, and whether its kernels are in PyTorch's layout."""

    entries: tuple[Entry, ...]
    torch_layout: bool = True

    def shape_in_file(self, entry: Entry, flax_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in the file of an entry whose flax variable has the shape `flax_shape`."""
        shape = flax_shape if entry.element is None else flax_shape[1:]
        return to_torch_layout(np.broadcast_to(np.int8(0), shape)).shape if self.torch_layout else shape


def flax_name(entry: Entry) -> str:
    """Return the flax name of an entry."""
    return "/".join(entry.path)


def from_torch_layout(array: np.ndarray) -> np.ndarray:
    """Return OIHW kernels as HWIO, and other arrays unchanged."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Return HWIO kernels as OIHW, and other arrays unchanged."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def import_tensors(
    tensors: Mapping[str, np.ndarray],
    naming: Naming,
    shapes: Shapes,
    where: str,
    *,
    optional: Collection[str] = (),
) -> Tensors:
    """Return a file's tensors as flax variables, by flax name.

    Args:
        tensors: by the file's names.
        naming: the tensors that the file must have.
        shapes: the shapes that the flax variables must have.
        where: the name of the file, for the error.
        optional: flax names of tensors that may be missing.

    Raises:
        WeightsError: lists every missing and unexpected tensor and every wrong shape, in the file's layout.
    """
    problems: list[str] = []
    pieces: dict[str, list[np.ndarray]] = {}
    for entry in naming.entries:
        variable, name = flax_name(entry), entry.torch_name
        expected = naming.shape_in_file(entry, shapes[variable])
        if name not in tensors:
            if variable not in optional:
                problems.append(f"missing: {name} {_format(expected)}")
        elif tensors[name].shape == expected:
            array = np.asarray(tensors[name])
            pieces.setdefault(variable, []).append(from_torch_layout(array) if naming.torch_layout else array)
        else:
            problems.append(f"wrong shape: {name} is {_format(tensors[name].shape)}, should be {_format(expected)}")
    known = {entry.torch_name for entry in naming.entries}
    problems += [f"unexpected: {name} {_format(array.shape)}" for name, array in tensors.items() if name not in known]
    if problems:
        count = f"{len(problems)} tensor{'s' if len(problems) > 1 else ''} don't fit the config's model"
        more = [f"and {len(problems) - _MAX_PROBLEMS:,} more"] if len(problems) > _MAX_PROBLEMS else []
        raise WeightsError("\n  ".join([f"{where}: {count}:", *problems[:_MAX_PROBLEMS], *more]))
    unsplit = {flax_name(entry) for entry in naming.entries if entry.element is None}
    return {name: parts[0] if name in unsplit else np.stack(parts) for name, parts in pieces.items()}


def export_tensors(variables: Mapping[str, Any], naming: Naming) -> Tensors:
    """Return flax variables (by flax name) under the names and in the layout of a file."""
    tensors = {}
    for entry in naming.entries:
        array = np.asarray(variables[flax_name(entry)])
        array = array if entry.element is None else array[entry.element]
        tensors[entry.torch_name] = to_torch_layout(array) if naming.torch_layout else array
    return tensors


def import_state_dict(state_dict: Mapping[str, np.ndarray], config: Config, shapes: Shapes | None = None) -> Any:
    """Return the flax variables {"params": …, "batch_stats": …} of an mmdetection state dict of numpy arrays.

    Args:
        state_dict: by mmdetection's names.
        config: the config of the model.
        shapes: as `shapes.variable_shapes` returns them; without them any shape is accepted.

    Raises:
        WeightsError: as `import_tensors`.
    """
    naming = Naming(tensor_table(config))
    tensors = {name: array for name, array in state_dict.items() if not name.endswith("num_batches_tracked")}
    if shapes is None:
        shapes = _shapes_of(tensors, naming)
    return nest(import_tensors(tensors, naming, shapes, config.name))


def export_state_dict(variables: Mapping[str, Any], config: Config) -> Tensors:
    """Return flax variables (or a tree of the same structure, such as gradients) as an mmdetection state dict."""
    return export_tensors(named_leaves(variables), Naming(tensor_table(config)))


def _shapes_of(tensors: Mapping[str, np.ndarray], naming: Naming) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the flax variables that the tensors would become; () for missing tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in naming.entries:
        array = from_torch_layout(np.asarray(tensors.get(entry.torch_name, np.float32(0))))
        shapes[flax_name(entry)] = array.shape if entry.element is None else (0, *array.shape)
    return shapes


def _format(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
