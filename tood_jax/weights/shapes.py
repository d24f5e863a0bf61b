"""Shapes of a detector's variables, and which of them depend on the number of classes; taken from the model itself."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.checkpoint.reader import named_leaves
from tood_jax.weights.mapping import Naming, Shapes, flax_name


def variable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's variables by flax name ("params/backbone/conv1/kernel"); nothing is computed."""
    return dict(_variable_shapes(model))


@lru_cache(maxsize=8)  # tracing a model takes seconds, and a conversion asks several times
def _variable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(variables).items()}


class DetectorShapes(NamedTuple):
    """Shapes for one class and for two; sizes are linear in the number of classes, so these determine all others."""

    one_class: Shapes
    two_classes: Shapes

    @property
    def class_dependent(self) -> frozenset[str]:
        """Flax names of the variables that have an axis of classes: the classifier."""
        return frozenset(name for name, shape in self.one_class.items() if self.two_classes[name] != shape)

    def with_classes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes for this number of classes."""
        return {
            name: tuple(a + (count - 1) * (b - a) for a, b in zip(shape, self.two_classes[name], strict=True))
            for name, shape in self.one_class.items()
        }

    def count_classes(self, tensors: Mapping[str, np.ndarray], naming: Naming) -> int | None:
        """Return the number of classes of a file's classifier; None if no classifier of this model could have it."""
        for entry in naming.entries:
            name = flax_name(entry)
            one, two = (
                naming.shape_in_file(entry, self.one_class[name]),
                naming.shape_in_file(entry, self.two_classes[name]),
            )
            given = tensors[entry.torch_name].shape if entry.torch_name in tensors else ()
            if name in self.class_dependent and len(given) == len(one):
                size, a, b = next(sizes for sizes in zip(given, one, two, strict=True) if sizes[1] != sizes[2])
                if size >= a and (size - a) % (b - a) == 0:
                    return 1 + (size - a) // (b - a)
        return None


def detector_shapes(build: Callable[[int], nn.Module]) -> DetectorShapes:
    """Return the shapes of the detectors that `build` returns for a number of classes."""
    return DetectorShapes(variable_shapes(build(1)), variable_shapes(build(2)))
