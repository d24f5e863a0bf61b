"""Read metrics.jsonl of a run, which may come from elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tood_jax.untrusted.bounded_json import JsonError, as_integer, parse_json
from tood_jax.untrusted.regular_files import read_regular

_MAX_BYTES, _MAX_LINE_BYTES = 4 << 30, 1 << 24


def read_metrics_rows(log: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and values of each line; lines that a kill left incomplete are ignored.

    Raises:
        OSError: the file can't be read.
    """
    for line in read_regular(log, _MAX_BYTES).splitlines():
        try:
            row = parse_json(line, _MAX_LINE_BYTES)
        except JsonError:
            continue
        step = as_integer(row.get("step"), low=0) if isinstance(row, dict) else None
        if step is not None:
            yield step, row
