"""Memory, work and collectives of a compiled program, from the compiler.

XLA counts the body of a loop once, and the bytes of a fusion as if nothing were in fast memory.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from tood_jax.tools.compile_for.hlo_text import array_bytes
from tood_jax.tools.compile_for.operations import product_flops
from tood_jax.tools.compile_for.traffic import estimated_cycles, hbm_bytes, launches

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int  # state and batch
    outputs: int
    aliased: int  # outputs in the memory of donated arguments
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """Bytes that the program needs while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Collective(NamedTuple):
    """A collective of a program."""

    kind: str
    axis: str  # of the mesh, "data", "space" or "data, space"
    bytes: int  # size of its result on one device


class Work(NamedTuple):
    """Work of one device in one execution."""

    flops: float  # the compiler's count, or `operations.product_flops` if it has none
    bytes_accessed: float | None  # the compiler's count or None; far too high if arrays are prefetched in slices
    hbm_bytes: float  # `traffic.hbm_bytes`
    cycles: float  # `traffic.estimated_cycles`
    kernels: int  # `traffic.launches`


def memory_of(compiled: Any) -> Memory:
    """Return the compiler's analysis of memory."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def work_of(compiled: Any) -> Work:
    """Return the compiler's counts and the traffic counted in the text."""
    found = compiled.cost_analysis() or {}  # None for a GPU that this machine does not have
    text = compiled.as_text()
    flops = float(found["flops"]) if "flops" in found else product_flops(text)
    accessed = float(found["bytes accessed"]) if "bytes accessed" in found else None
    return Work(flops, accessed, float(hbm_bytes(text)), float(estimated_cycles(text)), launches(text))


def collectives_of(text: str, mesh: Mesh) -> list[Collective]:
    """Return the collectives in the text of a compiled program, in order; the body of a loop counts once."""
    found = []
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = array_bytes(match["shape"])
            if match["start"] and match["kind"] != "all-reduce":  # the shape has operands, results and perhaps flags
                arrays = array_bytes(match["shape"].replace("u32[]", ""))
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(match["kind"], _axis(line, mesh), sum(arrays)))
    return found


def sum_by_kind(collectives: list[Collective]) -> list[tuple[Collective, int]]:
    """Return (sum, count) of the collectives of each kind and axis, the largest first."""
    counts = Counter((collective.kind, collective.axis) for collective in collectives)
    sizes: Counter[tuple[str, str]] = Counter()
    for collective in collectives:
        sizes[collective.kind, collective.axis] += collective.bytes
    return sorted(((Collective(*key, sizes[key]), counts[key]) for key in counts), key=lambda pair: -pair[0].bytes)


def _axis(line: str, mesh: Mesh) -> str:
    """Return the axes along which the devices of a group differ."""
    grid = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    group = _group(line, mesh.size)
    positions = np.stack([np.argwhere(grid == device)[0] for device in group])
    differs = (positions != positions[0]).any(axis=0)
    return ", ".join(name for name, is_different in zip(mesh.shape, differs, strict=True) if is_different)


def _group(line: str, size: int) -> list[int]:
    """Return the devices (positions in the mesh) of the first group of a collective."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return [int(pairs[1]), int(pairs[2])]
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        lengths = [int(length) for length in re.findall(r"=(\d+)", named[1])]
        names = re.findall(r"'(\w+)'=", named[1])
        grid = np.arange(math.prod(lengths)).reshape(lengths)
        return grid[tuple(slice(None) if f"'{name}'" in named[2] else 0 for name in names)].ravel().tolist()
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, dims = ([int(x) for x in text.split(",")] for text in iota.groups()[:2])
        order = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            order = order.transpose([int(x) for x in iota[3].split(",")])
        return order.reshape(groups[0], -1)[0].tolist()
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return [int(x) for x in listed[1].split(",")]
    return list(range(size))
