"""Parse the text of a compiled program, `compiled.as_text()`, into instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4}
ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLS = re.compile(r"(?:body|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


class Instruction(NamedTuple):
    """An instruction: `%name = shape kind(operands), …`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    line: str

    @property
    def origin(self) -> str:
        """The operation it is from, "jit(step)/jvp(Detector)/neck/lateral_0/conv_general_dilated"; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""


class Program(NamedTuple):
    """All computations: the entry, bodies of loops and fusions, and so on."""

    entry: str
    computations: dict[str, list[Instruction]]
    shapes: dict[str, str]  # of every instruction, by name

    def body(self, fusion: Instruction) -> list[Instruction]:
        """Return the instructions of a fusion; [] if the text does not have them."""
        called = re.search(r"calls=%?([\w.\-]+)", fusion.line)
        return self.computations.get(called[1], []) if called else []


def array_bytes(shape: str, *, only_hbm: bool = False) -> list[int]:
    """Return the bytes of each array in an HLO shape, for example "(f32[3,4]{1,0:S(1)}, u32[])".

    Args:
        shape: the text of the shape.
        only_hbm: leave out arrays in another memory space, such as S(1): fast memory.
    """
    sizes = []
    for dtype, dims, layout in ARRAY.findall(shape):
        if only_hbm and "S(" in layout:
            continue
        bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
        sizes.append(math.prod(int(length) for length in dims.split(",") if length) * bits // 8)
    return sizes


def lengths(shape: str) -> list[int]:
    """Return the lengths of the axes of the first array in an HLO shape."""
    found = ARRAY.search(shape)
    return [int(length) for length in found[2].split(",") if length] if found else []


def read_program(text: str) -> Program:
    """Return the computations of `compiled.as_text()`."""
    entry, current = "", None
    computations: dict[str, list[Instruction]] = {}
    shapes: dict[str, str] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, shape, kind, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")")[0]))
            current.append(Instruction(name, shape, kind, operands, line))
            shapes[name] = shape
    return Program(entry, computations, shapes)


def executed(program: Program) -> Iterator[tuple[Instruction, int]]:
    """Yield the instructions of an execution and how often they run: loops as often as they run, both branches once."""

    def run(computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in program.computations.get(computation, []):
            yield instruction, times
            if instruction.kind in ("while", "conditional"):
                called = [name for pair in _CALLS.findall(instruction.line) for name in "".join(pair).split(",")]
                iterations = times * _iterations(instruction, program)
                for name in called:
                    yield from run(name.strip().lstrip("%"), iterations)

    return run(program.entry, 1)


def _iterations(loop: Instruction, program: Program) -> int:
    """Return how often a loop runs: as the compiler notes, or by a comparison with a constant; 1 if unknown."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
    lines = [instruction.line for instruction in program.computations[condition[1]]] if condition else []
    limits = [found[1] for line in lines if (found := re.search(r" constant\((\d+)\)", line))]
    return int(limits[0]) if len(limits) == 1 and any("direction=LT" in line for line in lines) else 1
