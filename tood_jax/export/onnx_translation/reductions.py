"""Convolutions, products, sums and searches in ONNX."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tood_jax.export.onnx_translation.elementwise import Translate, element_type
from tood_jax.export.onnx_translation.graph import Graph, Value


def _inverse(order: Sequence[int]) -> list[int]:
    return [int(axis) for axis in np.argsort(order)]


def _transposed(graph: Graph, name: str, order: Sequence[int]) -> str:
    order = [int(axis) for axis in order]
    return name if order == sorted(order) else graph.one("Transpose", name, perm=order)


def _whole_inputs(graph: Graph, equation: Any, values: Sequence[Value]) -> list[str]:
    return [graph.whole(value, var.aval.shape) for value, var in zip(values, equation.invars, strict=True)]


def _convolution(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    params, (x, kernel) = equation.params, _whole_inputs(graph, equation, values)
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise NotImplementedError("a transposed convolution")
    order = params["dimension_numbers"]
    shape = equation.invars[1].aval.shape
    name = graph.one(
        "Conv",
        _transposed(graph, x, order.lhs_spec),
        _transposed(graph, kernel, order.rhs_spec),
        kernel_shape=[shape[axis] for axis in order.rhs_spec[2:]],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
    )
    return [Value(_transposed(graph, name, _inverse(order.out_spec)), equation.outvars[0].aval.shape)]


def _max_pool(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    params, (x,) = equation.params, _whole_inputs(graph, equation, values)
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    if window[0] != 1 or window[-1] != 1 or len(window) != 4:
        raise NotImplementedError(f"reduce_window_max over {window}")
    pads = [low for low, _ in padding[1:3]] + [high for _, high in padding[1:3]]
    name = _transposed(graph, x, (0, 3, 1, 2))
    name = graph.one("MaxPool", name, kernel_shape=list(window[1:3]), strides=list(strides[1:3]), pads=pads)
    return [Value(_transposed(graph, name, (0, 2, 3, 1)), equation.outvars[0].aval.shape)]


def _dot_general(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (contract, batch), names = equation.params["dimension_numbers"], _whole_inputs(graph, equation, values)
    shapes = [var.aval.shape for var in equation.invars]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*contract[side], *batch[side])]
        for side, shape in enumerate(shapes)
    ]
    orders = (*batch[0], *free[0], *contract[0]), (*batch[1], *contract[1], *free[1])

    def size(side, axes):
        return math.prod(shapes[side][axis] for axis in axes)

    batches = [shapes[0][axis] for axis in batch[0]]
    left = _transposed(graph, names[0], orders[0])
    right = _transposed(graph, names[1], orders[1])
    left = graph.reshape(left, [math.prod(batches), size(0, free[0]), size(0, contract[0])])
    right = graph.reshape(right, [math.prod(batches), size(1, contract[1]), size(1, free[1])])
    shape = equation.outvars[0].aval.shape
    return [Value(graph.reshape(graph.one("MatMul", left, right), shape), shape)]


def _reduce(operator: str, graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (x,), axes, shape = _whole_inputs(graph, equation, values), equation.params["axes"], equation.outvars[0].aval.shape
    is_bool = equation.invars[0].aval.dtype == bool
    x = graph.one("Cast", x, to=element_type(np.int32)) if is_bool else x
    name = graph.one(operator, x, graph.constant(list(axes), np.int64), keepdims=0)
    return [Value(graph.one("Cast", name, to=element_type(bool)) if is_bool else name, shape)]


def _argmax(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    ((x,), (axis,)) = _whole_inputs(graph, equation, values), equation.params["axes"]
    name = graph.one("ArgMax", x, axis=int(axis), keepdims=0)
    return [
        Value(graph.one("Cast", name, to=element_type(equation.params["index_dtype"])), equation.outvars[0].aval.shape)
    ]


def _top_k(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    (x,), params = _whole_inputs(graph, equation, values), equation.params
    best, positions = graph.add(
        "TopK", x, graph.constant([params["k"]], np.int64), outputs=2, axis=params.get("axis", -1), sorted=1
    )
    positions = graph.one("Cast", positions, to=element_type(np.int32))
    return [Value(best, equation.outvars[0].aval.shape), Value(positions, equation.outvars[1].aval.shape)]


def _gather(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Write a gather of single elements or of whole slices as GatherND, the batching axes in front."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    (shape, index_shape), out = (var.aval.shape for var in equation.invars), equation.outvars[0].aval.shape
    sizes = params["slice_sizes"]
    batch, of_indices = [int(a) for a in numbers.operand_batching_dims], numbers.start_indices_batching_dims
    columns = {int(axis): i for i, axis in enumerate(numbers.start_index_map)}
    indexed = [
        axis for axis in columns if sizes[axis] == 1 and (shape[axis] != 1 or axis in numbers.collapsed_slice_dims)
    ]
    whole = [axis for axis in range(len(shape)) if axis not in (*batch, *indexed)]
    if any(sizes[axis] != shape[axis] for axis in whole):
        raise NotImplementedError(f"gather of slices {sizes} of {shape}")
    x, indices = (graph.whole(value, var.aval.shape) for value, var in zip(values, equation.invars, strict=True))
    x = _transposed(graph, x, (*batch, *indexed, *whole))
    others = [axis for axis in range(len(index_shape) - 1) if axis not in of_indices]
    indices = _transposed(graph, indices, (*of_indices, *others, len(index_shape) - 1))
    if not indexed:
        raise NotImplementedError("gather without indices")
    chosen = [columns[axis] for axis in indexed]
    if chosen != list(range(len(columns))):
        indices = graph.one("Gather", indices, graph.constant(chosen, np.int64), axis=len(index_shape) - 1)
    indices = graph.one("Cast", indices, to=element_type(np.int64))
    if params["mode"].name in ("CLIP", "FILL_OR_DROP"):  # indices outside do not occur, but must not end the program
        last = graph.constant([shape[axis] - 1 for axis in indexed], np.int64)
        indices = graph.one("Min", graph.one("Max", indices, graph.constant(0, np.int64)), last)
    name = graph.one("GatherND", x, indices, batch_dims=len(batch))
    return [Value(_gathered(graph, name, equation, batch, of_indices, others, whole), out)]


def _gathered(graph: Graph, name: str, equation: Any, batch, of_indices, others, whole) -> str:
    """Bring what GatherND returned, [batching axes, other axes of the indices, slices], into the order of JAX."""
    numbers, out = equation.params["dimension_numbers"], equation.outvars[0].aval.shape
    collapsed = [int(axis) for axis in numbers.collapsed_slice_dims]
    slices = [axis for axis in range(len(equation.invars[0].aval.shape)) if axis not in (*batch, *collapsed)]
    place = {}  # of each axis of the output in what GatherND returned
    in_front = [axis for axis in range(len(out)) if axis not in numbers.offset_dims]
    from_indices = [*of_indices, *others]
    for axis, index_axis in zip(in_front, range(len(in_front)), strict=True):
        place[axis] = from_indices.index(index_axis)
    kept = [axis for axis in whole if axis not in collapsed]
    axes = [axis for axis in numbers.offset_dims if slices[list(numbers.offset_dims).index(axis)] in kept]
    dropped = [axis for axis in whole if axis in collapsed]  # of length 1
    if dropped:
        squeezed = [len(from_indices) + whole.index(axis) for axis in dropped]
        name = graph.one("Squeeze", name, graph.constant(squeezed, np.int64))
    for axis in axes:
        place[int(axis)] = len(from_indices) + kept.index(slices[list(numbers.offset_dims).index(axis)])
    name = _transposed(graph, name, [place[axis] for axis in sorted(place)])
    if added := [int(axis) for axis in numbers.offset_dims if int(axis) not in place]:
        name = graph.one("Unsqueeze", name, graph.constant(added, np.int64))
    return name


def _scatter(graph: Graph, equation: Any, values: Sequence[Value]) -> list[Value]:
    """Write one element per row as a choice."""
    numbers = equation.params["dimension_numbers"]
    x, indices, updates = _whole_inputs(graph, equation, values)
    shape, index_shape = (var.aval.shape for var in equation.invars[:2])
    is_one_per_row = (
        numbers.update_window_dims == ()
        and len(numbers.inserted_window_dims) == 1
        and len(shape) == len(numbers.operand_batching_dims) + 1 == len(index_shape)
    )
    if not is_one_per_row:
        raise NotImplementedError(f"scatter of {index_shape} in {shape}")
    axis = int(numbers.inserted_window_dims[0])
    if axis != len(shape) - 1:
        raise NotImplementedError(f"scatter along axis {axis} of {shape}")
    positions = np.arange(shape[axis], dtype=equation.invars[1].aval.dtype)
    is_chosen = graph.one("Equal", graph.constant(positions), indices)
    updates = graph.reshape(updates, [*equation.invars[2].aval.shape, 1])
    return [Value(graph.one("Where", is_chosen, updates, x), shape)]


REDUCTIONS: dict[str, Translate] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "dot_general": _dot_general,
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_min": partial(_reduce, "ReduceMin"),
    "reduce_prod": partial(_reduce, "ReduceProd"),
    "reduce_and": partial(_reduce, "ReduceMin"),
    "reduce_or": partial(_reduce, "ReduceMax"),
    "argmax": _argmax,
    "top_k": _top_k,
    "gather": _gather,
    "scatter": _scatter,
}
