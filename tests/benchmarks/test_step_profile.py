"""Where a step's time goes: hand-made timelines, and a real profile of the tiny detector."""

import pytest

from benchmarks.cases import step_profile
from benchmarks.cases.step_profile import seconds_by_stage
from benchmarks.harness.roofline import UNKNOWN_ORIGIN
from tood_jax.run_log.profile_trace import Event
from tood_jax.tools.compile_for.hlo_text import read_program

TEXT = """HloModule jit_step

%inside (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %product = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %fused = f32[4,4]{1,0} fusion(%a), kind=kCustom, calls=%inside, metadata={op_name="jit(step)/head/inter_0/add"}
  %norm = f32[4,4]{1,0} add(%fused, %a), metadata={op_name="jit(step)/head/inter_0_norm/add"}
  ROOT %copy.1 = f32[4,4]{1,0} copy(%norm)
}
"""


def test_products_and_all_else_by_stage():
    lines = [
        [Event("fused", 0, 5e9), Event("norm", 5e9, 1e9)],
        [Event("copy.1", 0, 2e9), Event("of another program", 3e9, 1e9)],
    ]
    products, others = seconds_by_stage(lines, read_program(TEXT))
    assert products == {"interactive convolutions": 5}
    assert others == {"interactive convolutions": 1, UNKNOWN_ORIGIN: 3}


def profiled(tmp_path, *more):
    """The report of a small R50's profile, and its rows by stage."""
    out = tmp_path / "report.json"
    network = ("--backbone.width=8", "--neck.channels=32", "--head.channels=32", "--head.norm_groups=8")
    size = ("--batch=1", "--height=64", "--width=64", "--classes=4", "--repeats=2")
    report = step_profile.main([*network, *size, *more, f"--out={out}", "--compilation_cache"])
    return report, {row["stage"]: row for row in report["results"]}


@pytest.mark.slow
def test_a_real_profile(tmp_path):
    report, rows = profiled(tmp_path)
    assert rows["interactive convolutions"]["products"] > 0
    assert rows["c5"]["floor"] > 0
    assert rows["all"]["products"] == pytest.approx(sum(row["products"] for row in report["results"][:-1]))
    assert rows["all"]["others"] > 0
    assert rows["all"]["floor"] > 0
    assert rows[UNKNOWN_ORIGIN]["products"] + rows[UNKNOWN_ORIGIN]["others"] < 0.5 * rows["all"]["others"]
    assert min(report["rates"].values()) > 0


@pytest.mark.torch
def test_beside_torch(tmp_path, capsys):
    report, _ = profiled(tmp_path, "--peer")
    assert min(report["torch"]) > 0
    assert "PyTorch: products" in capsys.readouterr().out
