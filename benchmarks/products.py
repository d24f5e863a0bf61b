"""Convolutions and matrix products of a traced network, with the modules that they belong to."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


class Product(NamedTuple):
    """One convolution or matrix product; sizes are numbers, not bytes."""

    module: str  # such as "Detector/head/head.level/inter_0"
    multiply_adds: int  # padding counts as numbers, as usual
    input: int
    output: int


def products(jaxpr: Jaxpr) -> Iterator[Product]:
    """Every product of a traced function, in the order of its equations, as often as it runs."""
    for equation, module, times in equations(jaxpr):
        params, inputs = equation.params, [variable.aval for variable in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            kernel, out_axis = inputs[1].shape, params["dimension_numbers"].rhs_spec[0]
            each = prod(kernel) // kernel[out_axis]  # a group's input channels × taps
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            each = prod(inputs[0].shape[axis] for axis in contracted)
        else:
            continue
        output = equation.outvars[0].aval.size
        for _ in range(times):
            yield Product(module, each * output, inputs[0].size, output)


def equations(jaxpr: Jaxpr, module: str = "", times: int = 1) -> Iterator[tuple[JaxprEqn, str, int]]:
    """Every operation, those inside of others too, its module, and how often it runs.

    Of a choice only the last side counts: of a platform's, that is every other platform's.

    Raises ValueError for a while loop, whose number of turns isn't known.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            raise ValueError("A while loop turns as often as it likes: its operations can't be counted.")
        inside = "/".join(part for part in (module, str(equation.source_info.name_stack)) if part)
        yield equation, inside, times
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        params = equation.params
        chosen = {"branches": params["branches"][-1:]} if equation.primitive.name == "cond" else params
        for inner in jaxprs_in_params(chosen):
            yield from equations(inner, inside, times * turns)
