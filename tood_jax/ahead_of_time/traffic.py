"""Bytes that a compiled TPU or GPU program moves to and from HBM, and cycles or kernels, counted in its text.

The compiler's own "bytes accessed" counts a prefetch of a slice as if it read the whole array, and arrays in fast
memory as if they lay in HBM: with a few thousand prefetches that is six times too much. Here every instruction counts
its operands and its result once where they lie in HBM, a slice what it takes, a prefetch what it brings, and a loop's
body as often as it runs, where that is known (else once).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable

from tood_jax.ahead_of_time.hlo_text import ARRAY, Instruction, Program, array_bytes, executed, lengths, read_program

_FREE = {  # move nothing themselves
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "opt-barrier"),
    *("copy-done", "slice-done", "all-reduce-done", "all-gather-done", "async-done", "after-all", "partition-id"),
}
_NO_DATA = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TAKE = ("slice", "dynamic-slice", "gather")
# Of as many numbers as their operand, but not one by one.
_MIXING = ("scatter", "convolution", "dot", "sort", "reduce-window", "reverse")


def hbm_bytes(text: str) -> int:
    """Bytes to and from HBM of one execution on one device; of a branch, both sides.

    Args:
        text: of a compiled program, `compiled.as_text()`.
    """
    return sum(hbm_bytes_by_operation(text).values())


def hbm_bytes_by_operation(text: str) -> Counter[str]:
    """The same, told apart by what the compiler notes as the origin of an instruction.

    Returns:
        Bytes of each `op_name`, such as "jit(step)/jvp(Detector)/neck/lateral_0/conv_general_dilated"; "" without one.
    """
    return _by_operation(text, _moved)


def estimated_cycles(text: str) -> int:
    """Cycles of one execution, as a TPU's compiler estimates them of each instruction; what overlaps counts in full.

    To compare two programs, not to foretell a time. 0 where the compiler notes none, as those of CPUs and GPUs.
    """
    return sum(_by_operation(text, _cycles).values())


def launches(text: str) -> int:
    """Instructions that do something, of one execution: on a GPU the kernels that are launched."""
    return sum(_by_operation(text, lambda one, _: one.kind not in _FREE).values())


def _by_operation(text: str, measure: Callable[[Instruction, Program], int]) -> Counter[str]:
    program = read_program(text)
    total: Counter[str] = Counter()
    for one, times in executed(program):
        total[one.origin] += times * measure(one, program)
    return total


def _cycles(one: Instruction, program: Program) -> int:
    found = _CYCLES.search(one.line)
    return 0 if found is None or one.kind in ("while", "conditional") else int(found[1])


def _moved(one: Instruction, program: Program) -> int:
    if one.kind in _FREE or any(f'"{name}"' in one.line for name in _NO_DATA):
        return 0
    if one.kind in ("copy-start", "slice-start"):
        ends = _ends(one, program)
        return min(sum(array_bytes(end)) for end in ends) * sum("S(" not in end for end in ends)
    if one.kind == "fusion" and (body := program.body(one)):
        return _fusion_moves(one, body, program)
    operands = [program.shapes.get(name, "") for name in dict.fromkeys(one.operands)]
    if one.kind in _TAKE:
        operands = [one.shape]
    elif one.kind == "dynamic-update-slice":
        return 2 * sum(array_bytes(operands[1], only_hbm=True)) if "S(" not in one.shape else 0
    return sum(sum(array_bytes(shape, only_hbm=True)) for shape in (one.shape, *operands))


def _fusion_moves(one: Instruction, body: list[Instruction], program: Program) -> int:
    """A fusion's results and operands: of an operand that it only slices, the slices; of one updated, the update."""
    by_name = {inner.name: inner for inner in body}

    def update_of(name: str) -> str | None:
        """The shape of what is written, where an instruction is a dynamic-update-slice, perhaps reshaped."""
        inner = by_name.get(name)
        while inner is not None and inner.kind in ("bitcast", "copy"):
            inner = by_name.get(inner.operands[0])
        return program.shapes[inner.operands[1]] if inner is not None and inner.kind == "dynamic-update-slice" else None

    root = body[-1]
    results = root.operands if root.kind == "tuple" else (root.name,)
    shapes = [match.group(0) for match in ARRAY.finditer(one.shape)]
    total = 0
    for shape, name in zip(shapes, results, strict=False):
        if "S(" not in shape:
            total += sum(array_bytes(update_of(name) or shape))
    shares = _shares_of_operands(body, program)
    for place, operand in enumerate(one.operands):
        shape = program.shapes.get(operand, "")
        if "S(" not in shape:
            total += round(shares.get(place, 1) * sum(array_bytes(shape)))
    return total


def _shares_of_operands(body: list[Instruction], program: Program) -> dict[int, float]:
    """The share of each operand that a fusion with this body reads, 0–1: of one that is sliced, the slices.

    Also where the slice is taken of what was computed from it number by number, for then no more is computed.
    """
    needed: defaultdict[str, float] = defaultdict(float, {body[-1].name: 1.0})
    shares = {}
    for one in reversed(body):  # users come after what they use
        share = min(needed[one.name], 1.0)
        if place := re.search(r" parameter\((\d+)\)", one.line):
            shares[int(place[1])] = share
        inner = _shares_of_operands(program.body(one), program) if one.kind == "fusion" else {}
        for at, operand in enumerate(one.operands):
            size, whole = (math.prod(lengths(program.shapes.get(name, ""))) for name in (one.name, operand))
            if one.kind in _TAKE and at == 0:
                needed[operand] += share * size / max(whole, 1)
            elif inner:
                needed[operand] += inner.get(at, 1)
            elif one.kind == "dynamic-update-slice" and at == 0:
                continue  # stays where it is
            else:
                needed[operand] += share if size == whole and one.kind not in _MIXING else 1
    return shares


def _ends(one: Instruction, program: Program) -> tuple[str, str]:
    """Of a copy that starts: its operand's shape and its result's (its own shape lists both, and a flag)."""
    arrays = [match.group(0) for match in ARRAY.finditer(one.shape)]
    plain = [array for array in arrays if array.split("{")[0] not in ("u32[]", "s32[]")]
    return program.shapes.get(one.operands[0], ""), plain[0] if one.kind == "copy-start" else plain[-1]
