"""Operations of single elements, and of shapes: how each primitive of JAX is written in ONNX.

A function takes (graph, equation, values of its inputs) and returns the values of its outputs.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tood_jax.export.onnx_package import helper
from tood_jax.export.onnx_translation.graph import Graph, Value

Translate = Callable[[Graph, Any, Sequence[Value]], list[Value]]


def element_type(dtype: Any) -> int:
    """Return ONNX's number of a numpy type."""
    return helper().np_dtype_to_tensor_dtype(np.dtype(dtype))


def _result_shape(equation: Any, values: Sequence[Value]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(value.shape for value in values)))


def _simple(operator: str, graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    name = graph.one(operator, *(graph.name(value) for value in values))
    return [Value(name, _result_shape(equation, values))]


def _composed(build: Callable[..., str], graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    name = build(graph, *(graph.name(value) for value in values), dtype=equation.invars[0].aval.dtype)
    return [Value(name, _result_shape(equation, values))]


def _rsqrt(graph, x, dtype):
    return graph.one("Reciprocal", graph.one("Sqrt", x))


def _log1p(graph, x, dtype):
    return graph.one("Log", graph.one("Add", x, graph.constant(1, dtype)))


def _not_equal(graph, x, y, dtype):
    return graph.one("Not", graph.one("Equal", x, y))


def _square(graph, x, dtype):
    return graph.one("Mul", x, x)


def _is_finite(graph, x, dtype):
    return graph.one("Not", graph.one("Or", graph.one("IsInf", x), graph.one("IsNaN", x)))


def _remainder(graph, x, y, dtype):
    return graph.one("Mod", x, y, fmod=1)  # with the sign of x


def _cast(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (value,) = values
    before, after = equation.invars[0].aval.dtype, equation.params["new_dtype"]
    if before == after:
        return [value]
    return [Value(graph.one("Cast", graph.name(value), to=element_type(after)), value.shape)]


def _select(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    which, *cases = values
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise NotImplementedError("select_n of more than two cases")
    name = graph.one("Where", graph.name(which), graph.name(cases[1]), graph.name(cases[0]))
    return [Value(name, _result_shape(equation, values))]


def _clamp(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    low, x, high = values
    name = graph.one("Min", graph.one("Max", graph.name(x), graph.name(low)), graph.name(high))
    return [Value(name, _result_shape(equation, values))]


def _integer_power(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    power = graph.constant(equation.params["y"], equation.invars[0].aval.dtype)
    return [Value(graph.one("Pow", graph.name(values[0]), power), values[0].shape)]


def _broadcast(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (value,) = values
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = length
    return [_reshaped(graph, value, tuple(shape))]


def _reshaped(graph: Graph, value: Value, shape: tuple[int, ...]) -> Value:
    if value.shape == shape:
        return value
    if value.constant is not None:
        return Value(value.name, shape, value.constant.reshape(shape))
    return Value(graph.reshape(value.name, shape), shape)


def _reshape(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    shape, full = equation.outvars[0].aval.shape, equation.invars[0].aval.shape
    (value,) = values
    if math.prod(value.shape) == 1:
        return [_reshaped(graph, value, (1,) * len(shape))]
    return [_reshaped(graph, Value(graph.whole(value, full), full), shape)]


def _squeeze(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (value,) = values
    kept = tuple(n for axis, n in enumerate(value.shape) if axis not in equation.params["dimensions"])
    return [_reshaped(graph, value, kept)]


def _expand_dims(graph: Graph, equation: Any, values: Sequence[Value], axis: int) -> Value:
    (value,) = values
    return _reshaped(graph, value, (*value.shape[:axis], 1, *value.shape[axis:]))


def _transpose(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (value,) = values
    order = equation.params["permutation"]
    name = graph.one("Transpose", graph.name(value), perm=list(order))
    return [Value(name, tuple(value.shape[axis] for axis in order))]


def _slice(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    params, shape = equation.params, equation.invars[0].aval.shape
    name = graph.whole(values[0], shape)
    numbers = params["start_indices"], params["limit_indices"], params["strides"] or [1] * len(shape)
    return [Value(_sliced(graph, name, *numbers), equation.outvars[0].aval.shape)]


def _sliced(graph: Graph, name: str, starts, ends, steps) -> str:
    axes = range(len(starts))
    return graph.one("Slice", name, *(graph.constant(list(x), np.int64) for x in (starts, ends, axes, steps)))


def _reverse(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    shape, axes = equation.invars[0].aval.shape, list(equation.params["dimensions"])
    name = graph.whole(values[0], shape)
    numbers = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes, [-1] * len(axes)
    return [Value(graph.one("Slice", name, *(graph.constant(list(x), np.int64) for x in numbers)), shape)]


def _pad(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    config, shape = equation.params["padding_config"], equation.invars[0].aval.shape
    if any(interior for _, _, interior in config):
        raise NotImplementedError("pad between elements")
    name = graph.whole(values[0], shape)
    if any(low < 0 or high < 0 for low, high, _ in config):
        starts = [max(0, -low) for low, _, _ in config]
        ends = [n - max(0, -high) for n, (_, high, _) in zip(shape, config, strict=True)]
        name = _sliced(graph, name, starts, ends, [1] * len(shape))
    pads = [max(0, low) for low, _, _ in config] + [max(0, high) for _, high, _ in config]
    filler = _reshaped(graph, values[1], ())
    name = graph.one("Pad", name, graph.constant(pads, np.int64), graph.name(filler), mode="constant")
    return [Value(name, equation.outvars[0].aval.shape)]


def _concatenate(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    names = [graph.whole(value, var.aval.shape) for value, var in zip(values, equation.invars, strict=True)]
    name = graph.one("Concat", *names, axis=equation.params["dimension"])
    return [Value(name, equation.outvars[0].aval.shape)]


def _stack(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]
    shape = equation.invars[0].aval.shape
    unit = (*shape[:axis], 1, *shape[axis:])
    names = [graph.whole(_expand_dims(graph, equation, [value], axis), unit) for value in values]
    return [Value(graph.one("Concat", *names, axis=axis), equation.outvars[0].aval.shape)]


def _split(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    name = graph.whole(values[0], equation.invars[0].aval.shape)
    names = graph.add("Split", name, graph.constant(list(sizes), np.int64), outputs=len(sizes), axis=axis)
    return [Value(part, var.aval.shape) for part, var in zip(names, equation.outvars, strict=True)]


def _tile(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    name = graph.whole(values[0], equation.invars[0].aval.shape)
    name = graph.one("Tile", name, graph.constant(list(equation.params["reps"]), np.int64))
    return [Value(name, equation.outvars[0].aval.shape)]


def _iota(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    axis, full = equation.params["dimension"], equation.params["shape"]
    shape = tuple(n if i == axis else 1 for i, n in enumerate(full))
    numbers = np.arange(full[axis], dtype=equation.params["dtype"]).reshape(shape)
    return [Value("", shape, numbers)]


def _same(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    return list(values)


ELEMENTWISE: dict[str, Translate] = {
    **{
        primitive: partial(_simple, operator)
        for primitive, operator in {
            "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
            "neg": "Neg", "sign": "Sign", "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "exp": "Exp", "log": "Log",
            "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "pow": "Pow", "eq": "Equal", "lt": "Less",
            "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual", "and": "And", "or": "Or", "not": "Not",
            "round": "Round", "erf": "Erf",
        }.items()
    },
    "rsqrt": partial(_composed, _rsqrt),
    "log1p": partial(_composed, _log1p),
    "ne": partial(_composed, _not_equal),
    "square": partial(_composed, _square),
    "is_finite": partial(_composed, _is_finite),
    "rem": partial(_composed, _remainder),
    "convert_element_type": _cast,
    "select_n": _select,
    "clamp": _clamp,
    "integer_pow": _integer_power,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _reverse,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "tile": _tile,
    "iota": _iota,
    "stop_gradient": _same,
    "optimization_barrier": _same,
    "copy": _same,
    "copy_p": _same,
}  # fmt: skip
