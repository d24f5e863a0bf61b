"""Count the floating-point operations of a compiled GPU program: matrix products and cuDNN's convolutions.

XLA counts them in programs for CPUs and TPUs, but not for a GPU that this machine does not have.
"""

import math
import re

from tood_jax.tools.compile_for.hlo_text import Instruction, Program, executed, lengths, read_program

_CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(\w+)"')


def product_flops(text: str) -> float:
    """Return the operations of an execution on one device, two for each multiply-add."""
    program = read_program(text)
    return 2 * sum(times * _multiply_adds(instruction, program) for instruction, times in executed(program))


def _multiply_adds(instruction: Instruction, program: Program) -> float:
    if instruction.kind == "fusion":
        return sum(_multiply_adds(inner, program) for inner in program.body(instruction))
    if instruction.kind == "dot":
        left = lengths(program.shapes.get(instruction.operands[0], ""))
        contracted = _find(r"lhs_contracting_dims=\{([\d,]*)\}", instruction)
        return _size(instruction.shape) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
    cudnn = _CUDNN.search(instruction.line) if instruction.kind == "custom-call" else None
    if cudnn is None and instruction.kind != "convolution":
        return 0
    first, second = (program.shapes.get(name, "") for name in instruction.operands[:2])
    output, kernel = instruction.shape, second
    if cudnn and cudnn[1] == "BackwardFilter":
        output, kernel = second, instruction.shape
    elif cudnn and cudnn[1] == "BackwardInput":
        output = first
    channels = lengths(kernel)[_find(r"dim_labels=\w+?_(\w+)->", instruction).index("o")]
    return _size(output) * _size(kernel) / channels


def _find(pattern: str, instruction: Instruction) -> str:
    found = re.search(pattern, instruction.line)
    return found[1] if found else ""


def _size(shape: str) -> float:
    return float(math.prod(lengths(shape)))
