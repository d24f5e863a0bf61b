"""What compiled programs do, beside the committed counts: slower code shows without a clock."""

import json

import pytest

from benchmarks.cases import operation_counts

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.slow
def test_as_committed():
    """After a change that is meant, `python -m benchmarks.cases.operation_counts --keep` commits the new ones."""
    committed = json.loads(operation_counts.FILE.read_text())["results"]
    assert operation_counts.differences(operation_counts.count(), committed) == []


def test_differences_beyond_their_margins_are_told():
    committed = {"step": {"flops": 1000.0, "fusions": 100, "sorts": 1}}
    assert operation_counts.differences({"step": {"flops": 1019.0, "fusions": 95, "sorts": 1}}, committed) == []
    assert operation_counts.differences({"step": {"flops": 1021.0, "fusions": 94, "sorts": 2}}, committed) == [
        "step: flops 1021, committed 1000 (±2%).",
        "step: fusions 94, committed 100 (±5%).",
        "step: sorts 2, committed 1 (±0%).",
    ]
