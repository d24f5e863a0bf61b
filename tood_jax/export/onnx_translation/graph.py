"""An ONNX graph while it is built, and the values that its nodes exchange."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tood_jax.export.onnx_package import helper, numpy_helper

OPSET = 18


@dataclass(frozen=True)
class Value:
    """An array of the program: a constant, or an output of a node.

    `shape` may have 1 where the program's array has more: elements are repeated only where an operator does not
    broadcast by itself.
    """

    name: str
    shape: tuple[int, ...]
    constant: np.ndarray | None = None


@dataclass
class Graph:
    """Nodes in the order of computation; the graph of a loop's body shares `shared` with the graph around it."""

    nodes: list[Any] = field(default_factory=list)
    shared: "Shared" = field(default_factory=lambda: Shared())

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        names = [self.shared.new_name() for _ in range(outputs)]
        self.nodes.append(helper().make_node(operator, list(inputs), names, **attributes))
        return names

    def one(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.add(operator, *inputs, **attributes)[0]

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Return the name of a constant."""
        return self.shared.constant(np.asarray(array, dtype))

    def name(self, value: Value) -> str:
        """Return the name of a value, which becomes an initializer if it is a constant."""
        return value.name if value.constant is None else self.constant(value.constant)

    def whole(self, value: Value, shape: Sequence[int]) -> str:
        """Return the name of a value with all of its elements, as many as the program's array has."""
        if value.shape == tuple(shape):
            return self.name(value)
        if value.constant is not None and np.prod(shape) <= 1 << 12:
            return self.constant(np.broadcast_to(value.constant, shape))
        return self.one("Expand", self.name(value), self.constant(shape, np.int64))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Return the name of a value in another shape."""
        return self.one("Reshape", name, self.constant(shape, np.int64))


@dataclass
class Shared:
    """Constants and names of a graph and of all graphs inside."""

    initializers: dict[str, Any] = field(default_factory=dict)
    _names: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _counter: Any = field(default_factory=itertools.count)

    def new_name(self) -> str:
        return f"v{next(self._counter)}"

    def constant(self, array: np.ndarray) -> str:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._names:
            name = self._names[key] = self.new_name()
            self.initializers[name] = numpy_helper().from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return self._names[key]
