"""Each case as a command, and the commands that the documentation names."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks.harness.options import ROOT, Options

WITHOUT_TOOD_JAX = "mmdetection_training"  # runs in an environment of its own
CASES = sorted(file.stem for file in (ROOT / "benchmarks" / "cases").glob("*.py") if file.stem != "__init__")
COMMAND = re.compile(r"python -m (benchmarks(?:\.\w+)+)")
REPORTS = ROOT / "reports" / "README.md"
FIRST_CELL = re.compile(r"^\|[^|\n]*\|", re.MULTILINE)  # in REPORTS: a command of before December 2026


@pytest.mark.parametrize("name", [name for name in CASES if name != WITHOUT_TOOD_JAX])
def test_help(name, capsys):
    module = importlib.import_module(f"benchmarks.cases.{name}")
    with pytest.raises(SystemExit) as caught:
        module.main(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert f"python -m benchmarks.cases.{name}" in output
    assert ("--repeats" in output) == issubclass(module.Args, Options)


def test_every_command_in_documentation_and_docstrings_exists():
    pages = [REPORTS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile"))]
    for folder, suffix in (("docs", "md"), ("tood_jax", "py"), ("configs", "py"), ("benchmarks", "py")):
        pages += sorted((ROOT / folder).rglob(f"*.{suffix}"))
    missing = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for module in COMMAND.findall(FIRST_CELL.sub("", text) if page == REPORTS else text):
            path = ROOT.joinpath(*module.split("."))
            if not path.with_suffix(".py").exists() and not path.is_dir() and path.name != "NAME":
                missing.append(f"{page.relative_to(ROOT)}: python -m {module}")
    assert missing == []


def test_runs_as_a_command(tmp_path):
    out = tmp_path / "nms.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.cases.nms",
        "--candidates=50",
        "--detections=5",
        "--repeats=1",
        f"--out={out}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["results"][0]["candidates"] == 50
