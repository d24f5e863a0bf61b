"""What every timing in a report must be."""

TIMING = {"median_seconds", "min_seconds", "max_seconds", "quartile_seconds", "all_seconds"}


def check_timing(timing):
    assert set(timing) >= TIMING
    assert len(timing["all_seconds"]) == 2
    assert 0 < timing["min_seconds"] <= timing["median_seconds"] <= timing["max_seconds"]
