"""The cases convolutions and deformable_convolution."""

from typing import get_args

import pytest

from benchmarks.cases import convolutions, deformable_convolution
from tests.benchmarks.timings import check_timing
from tood_jax.ops.deform_conv.deform_conv2d import Formulation


def test_convolutions(measured, monkeypatch):
    monkeypatch.setattr(convolutions, "SHAPES", {"small": (8, 3, 2, 8, 16), "point": (4, 1, 1, 4, 8)})
    rows = measured(convolutions, "--height=64", "--width=64", "--no_peer")["results"]
    assert [(row["convolution"], row["what"]) for row in rows[2:4]] == [
        ("small", "to the kernel"),
        ("point", "forward"),
    ]
    for row in rows:
        check_timing(row["tood_jax"])
        check_timing(row["XLA"])


@pytest.mark.torch
def test_convolutions_beside_torch(measured, monkeypatch):
    monkeypatch.setattr(convolutions, "SHAPES", {"small": (8, 3, 2, 8, 16)})
    for row in measured(convolutions, "--height=64", "--width=64")["results"]:
        check_timing(row["torch"])


@pytest.mark.slow
def test_deformable_convolution(measured, capsys):
    report = measured(
        deformable_convolution, "--height=5", "--width=6", "--channels=8", "--deformable_groups=2", "--groups=4"
    )
    rows = {(row["formulation"], row["pass"]): row for row in report["results"]}
    names = ("plain convolution", *get_args(Formulation))
    assert [*rows] == [(name, direction) for name in names for direction in ("forward", "gradient")]
    for (name, direction), row in rows.items():
        check_timing(row)
        assert row["program"]["memory"]["temporaries"] >= 0
        iterations = {"per_tap": 9, "matmul": 5}.get(name, 1)  # over taps, over the rows of one image
        assert row["xla_flops"] == row["program"]["flops"] * iterations
        assert row["gigaflops_per_second"] == pytest.approx(2e-9 * row["multiply_adds"] / row["median_seconds"])
        locations, kernel = 5 * 6, 9 * 2 * 8
        sampled = 0 if name == "plain convolution" else locations * 2 * 9
        assert row["least_bytes"] == 4 * (
            2 * 8 * locations + kernel + 3 * sampled
            if direction == "forward"
            else 3 * 8 * locations + 2 * kernel + 6 * sampled
        )
        product, corners = 9 * locations * 2 * 8, (4 * 9 * locations * 8 if sampled else 0)
        assert row["multiply_adds"] == product + corners if direction == "forward" else 2 * product + 3 * corners
    assert "| per_tap " in capsys.readouterr().out


def test_an_unknown_topology_ends_with_a_message_that_names_the_option(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    with pytest.raises(SystemExit, match="--topology=nonsense:1x1"):
        deformable_convolution.main(["--topology=nonsense:1x1"])
