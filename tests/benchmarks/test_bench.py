"""`make bench` and `make bench-gpu`: what they run, print and keep."""

import importlib
import json

import pytest
import tyro

from benchmarks import bench
from benchmarks.common import ROOT


def test_bench_beside_what_was_committed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(bench, "COMMITTED", tmp_path / "bench.json")
    small = {"nms": "nms --candidates 60 --detections 10", "broken": "nms --candidates none"}
    monkeypatch.setattr(bench, "SETS", {**bench.SETS, "short": small})
    argv = [f"--folder={tmp_path}", "--extra=--repeats 2"]
    found = bench.main([*argv, "--only", "nms", "--keep"])
    assert found["nms"].keys() == {"60, ours", "60, numpy"}
    capfd.readouterr()
    with pytest.raises(SystemExit, match="Failed: broken"):
        bench.main(argv)
    out = capfd.readouterr().out
    ours = next(line for line in out.splitlines() if "60, ours" in line)
    committed, ratio = (float(cell) for cell in ours.split("|")[-3:-1])
    assert committed == pytest.approx(found["nms"]["60, ours"] * 1e3, rel=0.01)
    assert ratio > 0
    with pytest.raises(SystemExit, match="speed must be among nms, broken"):
        bench.main(["--only", "speed"])


@pytest.mark.slow
def test_bench_of_a_gpu_on_this_machine(tmp_path, capfd):
    found = bench.main(["--set=gpu", "--only", "nms", f"--folder={tmp_path}", "--extra=--repeats 1"])
    assert {what for what in found["nms"] if "ours" in what} == {"1000, ours", "5000, ours", "20000, ours"}
    assert json.loads((tmp_path / "nms.json").read_text())["options"]["repeats"] == 1
    assert "20000, ours" in capfd.readouterr().out


@pytest.mark.parametrize("chosen", bench.SETS)
def test_every_command_of_bench_is_understood(chosen):
    for command in bench.SETS[chosen].values():
        module, *words = command.split()
        benchmark = importlib.import_module(f"benchmarks.{module}")
        words = [word for word in words if not word.startswith("--train.")]
        if "--config" in words:
            at = words.index("--config")
            assert (ROOT / words.pop(at + 1)).exists()
            words.pop(at)
        assert isinstance(tyro.cli(benchmark.Args, args=words, use_underscores=True), benchmark.Args)


def reports_of_bench():
    modules = {command.split()[0] for commands in bench.SETS.values() for command in commands.values()}
    reports = {file.stem: json.loads(file.read_text()) for file in sorted(bench.RESULTS.glob("*.json"))}
    return {name: report for name, report in reports.items() if report.get("benchmark") in modules}


@pytest.mark.parametrize(("name", "report"), reports_of_bench().items())
def test_no_two_figures_of_a_report_share_a_name(name, report):
    names = [what for what, _ in bench.figures(report)]
    assert len(names) == len(set(names)), name
