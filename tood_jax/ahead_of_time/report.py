"""What a compiled program takes of a device, read from the compiler: memory, work, and its collectives.

XLA's counts take the body of a loop once, and a fusion's bytes as if nothing stayed in fast memory.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from tood_jax.ahead_of_time.hlo_text import array_bytes
from tood_jax.ahead_of_time.operations import product_flops
from tood_jax.ahead_of_time.traffic import estimated_cycles, hbm_bytes, launches

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int  # state and batch
    outputs: int
    aliased: int  # outputs that take the place of donated arguments
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """What the program needs while it runs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Collective(NamedTuple):
    """One collective of a program."""

    kind: str
    axis: str  # of the mesh, "data", "space" or "data, space"
    bytes: int  # of its result on one device


class Work(NamedTuple):
    """Of one device and one execution."""

    flops: float  # the compiler's count, or `operations.product_flops` where it has none
    bytes_accessed: float | None  # the compiler's count, if any, far too high where arrays are prefetched by slices
    hbm_bytes: float  # ours, `traffic.hbm_bytes`
    cycles: float  # the compiler's estimates summed, `traffic.estimated_cycles`
    kernels: int  # `traffic.launches`


def memory_of(compiled: Any) -> Memory:
    """The compiler's own analysis."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def work_of(compiled: Any) -> Work:
    """The compiler's own counts, and ours of the traffic."""
    found = compiled.cost_analysis() or {}  # none for a GPU that isn't here
    text = compiled.as_text()
    flops = float(found["flops"]) if "flops" in found else product_flops(text)
    accessed = float(found["bytes accessed"]) if "bytes accessed" in found else None
    return Work(flops, accessed, float(hbm_bytes(text)), float(estimated_cycles(text)), launches(text))


def collectives_of(text: str, mesh: Mesh) -> list[Collective]:
    """Every collective of a compiled program's text, in its order; one in a loop's body stands there once."""
    found = []
    for line in text.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = array_bytes(match["shape"])
            if match["start"] and match["kind"] != "all-reduce":  # lists operands, then results, then perhaps flags
                arrays = array_bytes(match["shape"].replace("u32[]", ""))
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(match["kind"], _axis(line, mesh), sum(arrays)))
    return found


def summed(collectives: list[Collective]) -> list[tuple[Collective, int]]:
    """One entry a kind and axis, with all bytes, and how many there are; the largest first."""
    counts = Counter((one.kind, one.axis) for one in collectives)
    sums = {key: sum(one.bytes for one in collectives if (one.kind, one.axis) == key) for key in counts}
    return sorted(((Collective(*key, sums[key]), counts[key]) for key in counts), key=lambda one: -one[0].bytes)


def _axis(line: str, mesh: Mesh) -> str:
    """The axes along which the devices of a group differ."""
    grid = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    group = _group(line, mesh.size)
    places = np.stack([np.argwhere(grid == one)[0] for one in group])
    differs = (places != places[0]).any(axis=0)
    return ", ".join(name for name, moves in zip(mesh.shape, differs, strict=True) if moves)


def _group(line: str, size: int) -> list[int]:
    """The devices (positions in the mesh) that take part in the first group of a collective."""
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
