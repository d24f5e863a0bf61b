"""The text of a compiled program, `compiled.as_text()`, as instructions."""

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
    """One line: `%name = shape kind(operands), …`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    line: str

    @property
    def origin(self) -> str:
        """Where it comes from, "jit(step)/jvp(Detector)/neck/lateral_0/conv_general_dilated"; "" if unsaid."""
        found = re.search(r'op_name="([^"]*)"', self.line)
        return found[1] if found else ""


class Program(NamedTuple):
    """All computations: the entry, bodies of loops, of fusions, and so on."""

    entry: str
    computations: dict[str, list[Instruction]]
    shapes: dict[str, str]  # of every instruction, by name

    def body(self, fusion: Instruction) -> list[Instruction]:
        """What a fusion is made of; empty where the text doesn't say."""
        called = re.search(r"calls=%?([\w.\-]+)", fusion.line)
        return self.computations.get(called[1], []) if called else []


def array_bytes(shape: str, *, only_hbm: bool = False) -> list[int]:
    """Bytes of each array in an HLO shape, "(f32[3,4]{1,0:S(1)}, u32[])" for instance.

    Args:
        only_hbm: leave out those with a memory space of their own, S(1) and so on: fast memory.
    """
    sizes = []
    for dtype, dims, layout in ARRAY.findall(shape):
        if only_hbm and "S(" in layout:
            continue
        bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
        sizes.append(math.prod(int(length) for length in dims.split(",") if length) * bits // 8)
    return sizes


def lengths(shape: str) -> list[int]:
    """Of the first array in an HLO shape."""
    found = ARRAY.search(shape)
    return [int(length) for length in found[2].split(",") if length] if found else []


def read_program(text: str) -> Program:
    """The instructions of `compiled.as_text()`."""
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
    """What one execution runs, and how often: the entry, a loop's body as often as it runs, of a branch both sides."""

    def run(computation: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for one in program.computations.get(computation, []):
            yield one, times
            if one.kind in ("while", "conditional"):
                called = [name for pair in _CALLS.findall(one.line) for name in "".join(pair).split(",")]
                rounds = times * _rounds(one, program)
                for name in called:
                    yield from run(name.strip().lstrip("%"), rounds)

    return run(program.entry, 1)


def _rounds(loop: Instruction, program: Program) -> int:
    """How often a loop runs: as the compiler says, or if its condition is a comparison with one number; else 1."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
    lines = [one.line for one in program.computations[condition[1]]] if condition else []
    limits = [found[1] for line in lines if (found := re.search(r" constant\((\d+)\)", line))]
    return int(limits[0]) if len(limits) == 1 and any("direction=LT" in line for line in lines) else 1
