"""Translate the equations of a program: those that call others here, single operations by the tables.

Parts that depend on constants alone are computed while the graph is built, unless their result is large.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from tood_jax.export.folder import ExportError
from tood_jax.export.onnx_package import helper
from tood_jax.export.onnx_translation.elementwise import ELEMENTWISE, element_type
from tood_jax.export.onnx_translation.graph import Graph, Value
from tood_jax.export.onnx_translation.reductions import REDUCTIONS

PLATFORM = "cuda"  # whose formulations are operators of ONNX: im2col, whole convolutions
_MOST_COMPUTED = 1 << 16  # elements of a constant that is computed here
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_TABLES = {**ELEMENTWISE, **REDUCTIONS}


def translate(
    function: Callable[..., Sequence[Any]], arguments: Mapping[str, Any], weights: Mapping[str, Any]
) -> Graph:
    """Return the graph of `function(weights, *arguments)`; its outputs are named output_0, output_1, …

    Args:
        arguments: shapes and types of the inputs, by name.
        weights: shapes and types of the weights by name, which are inputs of the graph under these names.

    Raises:
        ExportError: an operation has no translation; the message names it.
    """
    closed = jax.make_jaxpr(lambda weights, *rest: function(weights, *rest))(dict(weights), *arguments.values())
    graph = Graph()
    names = [*sorted(weights), *arguments]
    inputs = [Value(name, var.aval.shape) for name, var in zip(names, closed.jaxpr.invars, strict=True)]
    outputs = _evaluate(graph, closed, inputs)
    for i, (value, var) in enumerate(zip(outputs, closed.jaxpr.outvars, strict=True)):
        name = graph.whole(value, var.aval.shape)
        graph.nodes.append(helper().make_node("Identity", [name], [f"output_{i}"]))
    return graph


def _evaluate(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Add the equations of a closed program and return the values of its outputs."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def value_of(atom: Any) -> Value:
        if not isinstance(atom, Literal):
            return known[atom]
        aval: Any = atom.aval
        return _constant(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
        results = _translate_equation(graph, equation, [value_of(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def _constant(array: Any, dtype: Any = None) -> Value:
    array = np.asarray(array, dtype)
    return Value("", array.shape, array)


def _translate_equation(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    primitive = equation.primitive.name
    if primitive == "platform_index":
        return [_constant(np.int32(_platform_index(equation.params["platforms"])))]
    if primitive == "cond":
        if values[0].constant is None:
            raise ExportError("ONNX: a condition that depends on the image has no translation.")
        return _evaluate(graph, equation.params["branches"][int(values[0].constant)], values[1:])
    if primitive == "scan":
        return _scan(graph, equation, values)
    for key in _CALLED:
        if key in equation.params:
            called = equation.params[key]
            called = ClosedJaxpr(called, ()) if isinstance(called, Jaxpr) else called
            return _evaluate(graph, called, values)
    if all(value.constant is not None for value in values) and primitive != "iota" and _is_small(equation):
        return _computed(equation, values)
    if primitive not in _TABLES:
        raise ExportError(f"ONNX: the operation {primitive} of {equation.invars} has no translation.")
    try:
        return _TABLES[primitive](graph, equation, values)
    except NotImplementedError as error:
        raise ExportError(f"ONNX: {error} has no translation.") from None


def _platform_index(platforms: Sequence[Any]) -> int:
    for index, names in enumerate(platforms):
        if names is None or PLATFORM in names:
            return index
    raise ExportError(f"ONNX: there is no formulation for {PLATFORM} among {platforms}.")


def _is_small(equation: Any) -> bool:
    return all(math.prod(var.aval.shape) <= _MOST_COMPUTED for var in equation.outvars)


def _computed(equation: Any, values: Sequence[Value]) -> list[Value]:
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        arrays = [
            np.broadcast_to(value.constant, atom.aval.shape)
            for value, atom in zip(values, equation.invars, strict=True)
            if value.constant is not None
        ]
        found = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
        found = found if equation.primitive.multiple_results else [found]
        return [
            _constant(np.asarray(array, var.aval.dtype)) for array, var in zip(found, equation.outvars, strict=True)
        ]


def _scan(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Write a scan as Loop: the constants are those of the graph around, the inputs are taken by the counter."""
    params = equation.params
    if params["reverse"]:
        raise ExportError("ONNX: a scan in reverse has no translation.")
    consts, carries = params["num_consts"], params["num_carry"]
    closed, length = params["jaxpr"], params["length"]
    body = Graph(shared=graph.shared)
    counter, going = body.shared.new_name(), body.shared.new_name()
    carry_vars = closed.jaxpr.invars[consts : consts + carries]
    carried = [Value(body.shared.new_name(), var.aval.shape) for var in carry_vars]
    inputs = []
    for value, var in zip(values[consts + carries :], equation.invars[consts + carries :], strict=True):
        whole = graph.whole(value, var.aval.shape)
        inputs.append(Value(body.one("Gather", whole, counter, axis=0), var.aval.shape[1:]))
    named = [Value(graph.name(value), value.shape) for value in values[:consts]]
    results = _evaluate(body, closed, [*named, *carried, *inputs])
    outputs = [
        body.one("Identity", body.whole(value, var.aval.shape))
        for value, var in zip(results, closed.jaxpr.outvars, strict=True)
    ]
    still = body.one("Identity", going)
    info = helper().make_tensor_value_info
    body_inputs = [info(counter, element_type(np.int64), []), info(going, element_type(bool), [])]
    body_inputs += [
        info(value.name, element_type(var.aval.dtype), value.shape)
        for value, var in zip(carried, carry_vars, strict=True)
    ]
    body_outputs = [info(still, element_type(bool), [])]
    body_outputs += [
        info(name, element_type(var.aval.dtype), var.aval.shape)
        for name, var in zip(outputs, closed.jaxpr.outvars, strict=True)
    ]
    subgraph = helper().make_graph(body.nodes, body.shared.new_name(), body_inputs, body_outputs)
    starts = [
        graph.whole(value, var.aval.shape)
        for value, var in zip(values[consts : consts + carries], carry_vars, strict=True)
    ]
    names = graph.add(
        "Loop",
        graph.constant(length, np.int64),
        graph.constant(True, bool),
        *starts,
        outputs=len(outputs),
        body=subgraph,
    )
    return [Value(name, var.aval.shape) for name, var in zip(names, equation.outvars, strict=True)]
