"""What several tests of cases share: the size of a tiny canvas, and the fields of timings and programs in reports."""

TIMING_FIELDS = {"median_seconds", "min_seconds", "max_seconds", "quartile_seconds", "all_seconds"}
PROGRAM_FIELDS = {"trace_seconds", "compile_seconds", "flops", "bytes_accessed", "memory"}
CANVAS = ("--height=64", "--width=64", "--classes=4")


def check_timing(timing):
    assert set(timing) >= TIMING_FIELDS
    assert len(timing["all_seconds"]) == 2
    assert 0 < timing["min_seconds"] <= timing["median_seconds"] <= timing["max_seconds"]
