"""Convolutions and matrix products of a traced network, their sizes, and the modules that they belong to."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params


class LinearOperation(NamedTuple):
    """One convolution or matrix product; sizes are in elements, not bytes."""

    module: str  # such as "Detector/head/head.level/inter_0"
    multiply_adds: int  # padding included, as usual
    input: int
    output: int


def linear_operations(jaxpr: Jaxpr) -> Iterator[LinearOperation]:
    """Yield each convolution and matrix product of a traced function, in order, as often as it runs."""
    for equation, module, times in equations(jaxpr):
        params, inputs = equation.params, equation.invars
        if equation.primitive.name == "conv_general_dilated":
            kernel, out_axis = array_of(inputs[1]).shape, params["dimension_numbers"].rhs_spec[0]
            per_output = prod(kernel) // kernel[out_axis]  # input channels of a group × taps
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            per_output = prod(array_of(inputs[0]).shape[axis] for axis in contracted)
        else:
            continue
        output = array_of(equation.outvars[0]).size
        for _ in range(times):
            yield LinearOperation(module, per_output * output, array_of(inputs[0]).size, output)


def array_of(variable: Var | Literal) -> ShapedArray:
    """Return the shape and type of a variable that holds an array."""
    assert isinstance(variable.aval, ShapedArray)
    return variable.aval


def equations(jaxpr: Jaxpr, module: str = "", times: int = 1) -> Iterator[tuple[JaxprEqn, str, int]]:
    """Yield (equation, its module, how often it runs) of each operation, nested ones included.

    Of a branch only the last side counts: where the platform decides, that is the side of all other platforms.

    Raises:
        ValueError: for a while loop, whose number of iterations is not known.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise ValueError("The operations of a while loop can't be counted: its number of iterations is unknown.")
        inside = "/".join(part for part in (module, str(equation.source_info.name_stack)) if part)
        yield equation, inside, times
        iterations = equation.params["length"] if equation.primitive.name == "scan" else 1
        params = equation.params
        chosen = {"branches": params["branches"][-1:]} if equation.primitive.name == "cond" else params
        for inner in jaxprs_in_params(chosen):
            yield from equations(inner, inside, times * iterations)
