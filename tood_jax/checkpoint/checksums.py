"""Checksums of a checkpoint's arrays: one CRC32 per leaf or, where several processes hold parts of it, per part.

A table has for each leaf {"shape": [...], "dtype": str, "crc32": n}; or, instead of "crc32",
"parts": [[[[start, stop] of each axis], n], ...], which together cover the array.
"""

import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from tood_jax.distributed.host_sync import gather_json

Table = dict[str, dict[str, Any]]
_Span = list[list[int]]  # [start, stop] of each axis
_THREADS = 4


def crc32_all(arrays: Iterable[np.ndarray]) -> list[int]:
    """Return the CRC32 of each array's bytes in C order; zlib releases the GIL, so threads help."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda a: zlib.crc32(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data), arrays))


def describe_leaves(arrays: Mapping[str, np.ndarray]) -> Table:
    """Return the table of whole arrays."""
    sums = crc32_all(arrays.values())
    return {name: _form(a) | {"crc32": crc} for (name, a), crc in zip(arrays.items(), sums, strict=True)}


def describe_global(arrays: Mapping[str, jax.Array]) -> Table:
    """Return the table of arrays over the devices of many processes, in all of them; each computes its own parts."""
    held = [
        (name, shard)
        for name, a in arrays.items()
        for shard in a.addressable_shards
        if shard.replica_id == 0 and a.size
    ]
    # By their data, not `np.asarray(array)`: a view held by the array itself would prevent the donation of its buffer.
    sums = crc32_all(np.asarray(shard.data) for _, shard in held)
    own = [
        (name, [list(part.indices(n)[:2]) for part, n in zip(shard.index, arrays[name].shape, strict=True)], crc)
        for (name, shard), crc in zip(held, sums, strict=True)
    ]
    parts: dict[str, list[tuple[_Span, int]]] = {name: [] for name in arrays}
    for name, span, crc in (row for rows in gather_json(own) for row in rows):
        parts[name].append((span, crc))
    table = {}
    for name, a in arrays.items():
        is_whole = not a.size or a.is_fully_replicated
        crc = parts[name][0][1] if parts[name] else 0  # the checksum of nothing is 0
        table[name] = _form(a) | ({"crc32": crc} if is_whole else {"parts": sorted(map(list, parts[name]))})
    return table


def wrong_leaves(arrays: Mapping[str, np.ndarray], table: Table) -> list[str]:
    """Return the names of the arrays that differ from the table in shape, dtype or checksum."""
    bad = {name for name, a in arrays.items() if _form(a) != {key: table[name].get(key) for key in _form(a)}}
    pieces = [
        (name, piece, crc) for name, a in arrays.items() if name not in bad for piece, crc in _pieces(a, table[name])
    ]
    found = crc32_all(piece for _, piece, _ in pieces)
    bad |= {name for (name, _, crc), other in zip(pieces, found, strict=True) if crc != other}
    return [name for name in arrays if name in bad]


def _form(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _pieces(array: np.ndarray, leaf: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    if "parts" not in leaf:
        return [(array, leaf["crc32"])]
    return [(array[tuple(slice(*ends) for ends in span)], crc) for span, crc in leaf["parts"]]
