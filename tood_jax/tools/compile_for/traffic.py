"""Count the HBM traffic, cycles and kernels of a compiled TPU or GPU program in its text.

The compiler's "bytes accessed" counts a prefetch of a slice as the whole array, and arrays in fast memory as if they
were in HBM: six times too much with a few thousand prefetches. Here an instruction counts its operands and its result
once if they are in HBM, a slice and a prefetch only what they copy, and the body of a loop as often as it runs, if that
is known (else once).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable

from tood_jax.tools.compile_for.hlo_text import (
    ARRAY,
    Instruction,
    Program,
    array_bytes,
    executed,
    lengths,
    read_program,
)

_FREE = {  # move no data themselves
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "opt-barrier"),
    *("copy-done", "slice-done", "all-reduce-done", "all-gather-done", "async-done", "after-all", "partition-id"),
}
_NO_DATA = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_SLICING = ("slice", "dynamic-slice", "gather")
# Instructions whose result may have the size of the operand without being element by element.
_MIXING = ("scatter", "convolution", "dot", "sort", "reduce-window", "reverse")


def hbm_bytes(text: str) -> int:
    """Return the bytes to and from HBM of an execution on one device; both branches of a conditional count.

    Args:
        text: text of a compiled program, `compiled.as_text()`.
    """
    return sum(hbm_bytes_by_operation(text).values())


def hbm_bytes_by_operation(text: str) -> Counter[str]:
    """Return the same by origin of the instructions.

    Returns:
        Bytes for each `op_name`, such as "jit(step)/jvp(Detector)/neck/lateral_0/conv_general_dilated"; "" if unknown.
    """
    return _by_operation(text, _moved)


def estimated_cycles(text: str) -> int:
    """Return the cycles of an execution, the sum of a TPU compiler's estimates for the instructions, without overlap.

    They compare two programs, and do not predict a time. 0 for compilers without estimates, such as for CPUs and GPUs.
    """
    return sum(_by_operation(text, _cycles).values())


def launches(text: str) -> int:
    """Return the number of instructions of an execution that do work: on a GPU, the launched kernels."""
    return sum(_by_operation(text, lambda instruction, _: instruction.kind not in _FREE).values())


def _by_operation(text: str, measure: Callable[[Instruction, Program], int]) -> Counter[str]:
    program = read_program(text)
    total: Counter[str] = Counter()
    for instruction, times in executed(program):
        total[instruction.origin] += times * measure(instruction, program)
    return total


def _cycles(instruction: Instruction, program: Program) -> int:
    found = _CYCLES.search(instruction.line)
    return 0 if found is None or instruction.kind in ("while", "conditional") else int(found[1])


def _moved(instruction: Instruction, program: Program) -> int:
    if instruction.kind in _FREE or any(f'"{name}"' in instruction.line for name in _NO_DATA):
        return 0
    if instruction.kind in ("copy-start", "slice-start"):
        ends = _ends(instruction, program)
        return min(sum(array_bytes(end)) for end in ends) * sum("S(" not in end for end in ends)
    if instruction.kind == "fusion" and (body := program.body(instruction)):
        return _fusion_moves(instruction, body, program)
    operands = [program.shapes.get(name, "") for name in dict.fromkeys(instruction.operands)]
    if instruction.kind in _SLICING:
        operands = [instruction.shape]
    elif instruction.kind == "dynamic-update-slice":
        return 2 * sum(array_bytes(operands[1], only_hbm=True)) if "S(" not in instruction.shape else 0
    return sum(sum(array_bytes(shape, only_hbm=True)) for shape in (instruction.shape, *operands))


def _fusion_moves(instruction: Instruction, body: list[Instruction], program: Program) -> int:
    """Return the bytes of a fusion's results and operands: only the slices, or the update, where it uses no more."""
    by_name = {inner.name: inner for inner in body}

    def update_of(name: str) -> str | None:
        """Return the shape that is written if an instruction is a dynamic-update-slice, perhaps reshaped."""
        inner = by_name.get(name)
        while inner is not None and inner.kind in ("bitcast", "copy"):
            inner = by_name.get(inner.operands[0])
        return program.shapes[inner.operands[1]] if inner is not None and inner.kind == "dynamic-update-slice" else None

    root = body[-1]
    results = root.operands if root.kind == "tuple" else (root.name,)
    shapes = [match.group(0) for match in ARRAY.finditer(instruction.shape)]
    total = 0
    for shape, name in zip(shapes, results, strict=False):
        if "S(" not in shape:
            total += sum(array_bytes(update_of(name) or shape))
    shares = _shares_of_operands(body, program)
    for position, operand in enumerate(instruction.operands):
        shape = program.shapes.get(operand, "")
        if "S(" not in shape:
            total += round(shares.get(position, 1) * sum(array_bytes(shape)))
    return total


def _shares_of_operands(body: list[Instruction], program: Program) -> dict[int, float]:
    """Return the fraction of each operand that a fusion with this body reads, 0–1, which is less for sliced operands.

    An operand also counts as sliced if the slice is of a result computed from it element by element.
    """
    needed: defaultdict[str, float] = defaultdict(float, {body[-1].name: 1.0})
    shares = {}
    for instruction in reversed(body):  # users come after what they use
        share = min(needed[instruction.name], 1.0)
        if parameter := re.search(r" parameter\((\d+)\)", instruction.line):
            shares[int(parameter[1])] = share
        inner = _shares_of_operands(program.body(instruction), program) if instruction.kind == "fusion" else {}
        for at, operand in enumerate(instruction.operands):
            size, whole = (math.prod(lengths(program.shapes.get(name, ""))) for name in (instruction.name, operand))
            if instruction.kind in _SLICING and at == 0:
                needed[operand] += share * size / max(whole, 1)
            elif inner:
                needed[operand] += inner.get(at, 1)
            elif instruction.kind == "dynamic-update-slice" and at == 0:
                continue  # is updated in place
            else:
                needed[operand] += share if size == whole and instruction.kind not in _MIXING else 1
    return shares


def _ends(instruction: Instruction, program: Program) -> tuple[str, str]:
    """Return the shapes of the operand and the result of a copy-start, whose own shape has both and a flag."""
    arrays = [match.group(0) for match in ARRAY.finditer(instruction.shape)]
    plain = [array for array in arrays if array.split("{")[0] not in ("u32[]", "s32[]")]
    return program.shapes.get(instruction.operands[0], ""), plain[0] if instruction.kind == "copy-start" else plain[-1]
