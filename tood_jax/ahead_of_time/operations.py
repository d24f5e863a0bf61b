"""Floating-point operations of a compiled GPU program, counted in its text: products and cuDNN's convolutions.

XLA counts them for the programs of CPUs and TPUs, but not for a GPU that isn't here.
"""

import math
import re

from tood_jax.ahead_of_time.hlo_text import Instruction, Program, executed, lengths, read_program

_CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')


def product_flops(text: str) -> float:
    """Two for each multiply-add of matrix products and convolutions, of one execution on one device."""
    program = read_program(text)
    return 2 * sum(times * _multiply_adds(one, program) for one, times in executed(program))


def _multiply_adds(one: Instruction, program: Program) -> float:
    if one.kind == "fusion":
        return sum(_multiply_adds(inner, program) for inner in program.body(one))
    if one.kind == "dot":
        given = lengths(program.shapes.get(one.operands[0], ""))
        summed = _said(r"lhs_contracting_dims=\{([\d,]*)\}", one)
        return _product(one.shape) * math.prod(given[int(dim)] for dim in summed.split(",") if dim)
    cudnn = _CUDNN.search(one.line) if one.kind == "custom-call" else None
    if cudnn is None and one.kind != "convolution":
        return 0
    first, second = (program.shapes.get(name, "") for name in one.operands[:2])
    cells, kernel = one.shape, second
    if cudnn and cudnn[1] == "BackwardFilter":
        cells, kernel = second, one.shape
    elif cudnn and cudnn[1] == "BackwardInput":
        cells = first
    outputs = lengths(kernel)[_said(r"dim_labels=\w+?_(\w+)->", one).index("o")]
    return _product(cells) * _product(kernel) / outputs


def _said(pattern: str, one: Instruction) -> str:
    found = re.search(pattern, one.line)
    return found[1] if found else ""


def _product(shape: str) -> float:
    return float(math.prod(lengths(shape)))
