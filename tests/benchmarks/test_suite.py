"""`make bench` and `make bench-gpu`: what they run, print and keep."""

import importlib
import json

import pytest
import tyro

from benchmarks import suite
from benchmarks.harness.options import RESULTS, ROOT


def test_figures_beside_the_committed_ones(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(suite, "COMMITTED", tmp_path / "bench.json")
    small = {"nms": "nms --candidates 60 --detections 10", "broken": "nms --candidates none"}
    monkeypatch.setattr(suite, "SETS", {**suite.SETS, "short": small})
    argv = [f"--folder={tmp_path}", "--extra=--repeats 2"]
    found = suite.main([*argv, "--only", "nms", "--keep"])
    assert found["nms"].keys() == {"60, ours", "60, numpy"}
    capfd.readouterr()
    with pytest.raises(SystemExit, match="Failed: broken"):
        suite.main(argv)
    out = capfd.readouterr().out
    ours = next(line for line in out.splitlines() if "60, ours" in line)
    committed, ratio = (float(cell) for cell in ours.split("|")[-3:-1])
    assert committed == pytest.approx(found["nms"]["60, ours"] * 1e3, rel=0.01)
    assert ratio > 0
    with pytest.raises(SystemExit, match="speed must be among nms, broken"):
        suite.main(["--only", "speed"])


@pytest.mark.slow
def test_the_set_for_a_gpu_runs_on_this_machine(tmp_path, capfd):
    found = suite.main(["--set=gpu", "--only", "nms", f"--folder={tmp_path}", "--extra=--repeats 1"])
    assert {what for what in found["nms"] if "ours" in what} == {"1000, ours", "5000, ours", "20000, ours"}
    assert json.loads((tmp_path / "nms.json").read_text())["options"]["repeats"] == 1
    assert "20000, ours" in capfd.readouterr().out


@pytest.mark.parametrize("chosen", suite.SETS)
def test_every_command_of_a_set_has_options_that_exist(chosen):
    for command in suite.SETS[chosen].values():
        case, *words = command.split()
        module = importlib.import_module(f"benchmarks.cases.{case}")
        words = [word for word in words if not word.startswith("--train.")]
        if "--config" in words:
            at = words.index("--config")
            assert (ROOT / words.pop(at + 1)).exists()
            words.pop(at)
        assert isinstance(tyro.cli(module.Args, args=words, use_underscores=True), module.Args)


def reports_of_bench():
    cases = tuple({command.split()[0] for commands in suite.SETS.values() for command in commands.values()})
    files = [file for file in sorted(RESULTS.glob("*.json")) if file.stem.startswith(cases)]
    return {file.stem: json.loads(file.read_text()) for file in files}


@pytest.mark.parametrize(("name", "report"), reports_of_bench().items())
def test_no_two_figures_of_a_report_share_a_name(name, report):
    names = [what for what, _ in suite.figures(report)]
    assert len(names) == len(set(names)), name
