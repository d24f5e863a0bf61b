"""Counts of the data that all processes of a run left out."""

from tood_jax.data.counts import DataCounts
from tood_jax.distributed.host_sync import gather_json


def sum_over_processes(own: DataCounts) -> DataCounts:
    """Return the sum of all processes' counts; every process must call it."""
    total = DataCounts()
    for counts in gather_json(own.to_plain()):
        total.add(DataCounts.from_plain(counts))
    return total
