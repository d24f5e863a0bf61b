"""Shapes of a detector's variables, and which of them follow the number of classes; read off the model itself."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tood_jax.training.checkpoint_files import named_leaves
from tood_jax.weights.mapping import Naming, Shapes, name_of


def variable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's variables, by name ("params/backbone/conv1/kernel"); nothing is computed."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(variables).items()}


class DetectorShapes(NamedTuple):
    """Shapes with one class and with two; sizes are linear in the number of classes, so these tell all."""

    one: Shapes
    two: Shapes

    @property
    def of_classes(self) -> frozenset[str]:
        """Names of the variables that have an axis of classes: the classifier."""
        return frozenset(name for name, shape in self.one.items() if self.two[name] != shape)

    def with_classes(self, count: int) -> dict[str, tuple[int, ...]]:
        """Shapes with so many classes."""
        return {
            name: tuple(a + (count - 1) * (b - a) for a, b in zip(shape, self.two[name], strict=True))
            for name, shape in self.one.items()
        }

    def count_classes(self, tensors: Mapping[str, np.ndarray], naming: Naming) -> int | None:
        """Number of classes that a file's classifier has; None if there is none, or none that could belong here."""
        for entry in naming.entries:
            name = name_of(entry)
            one, two = naming.shape(entry, self.one[name]), naming.shape(entry, self.two[name])
            given = tensors[entry.torch_name].shape if entry.torch_name in tensors else ()
            if name in self.of_classes and len(given) == len(one):
                size, a, b = next(sizes for sizes in zip(given, one, two, strict=True) if sizes[1] != sizes[2])
                if size >= a and (size - a) % (b - a) == 0:
                    return 1 + (size - a) // (b - a)
        return None


def detector_shapes(build: Callable[[int], nn.Module]) -> DetectorShapes:
    """Shapes of the detectors that `build` makes of a number of classes."""
    return DetectorShapes(variable_shapes(build(1)), variable_shapes(build(2)))
