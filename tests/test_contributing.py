"""The worked examples of CONTRIBUTING.md, done word for word in a copy of the code: their tests pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def code_blocks(heading):
    """The Python blocks of a section."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    for name in ("tood_jax", "tests", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def replace(file, old, new):
    """Replace the first occurrence of a text, which must be there."""
    source = file.read_text(encoding="utf-8")
    assert old in source, f"{file}: {old}"
    file.write_text(source.replace(old, new, 1), encoding="utf-8")


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_new_assigner(copy):
    module, function, test = code_blocks("Example: add an assigner")
    (copy / "tood_jax/assigners/nearest.py").write_text(module)
    (copy / "tests/assigners/test_nearest.py").write_text(test)
    assign = copy / "tood_jax/criterion/assign.py"
    replace(assign, "\nfrom tood_jax", "\nfrom tood_jax.assigners import nearest\nfrom tood_jax")
    replace(assign, "\nASSIGNERS", f"\n{function}\n\nASSIGNERS")
    replace(assign, '    "task_aligned": ', '    "nearest": _nearest,\n    "task_aligned": ')
    replace(
        copy / "tood_jax/config/schema.py",
        'kind: Literal["task_aligned", ',
        'kind: Literal["nearest", "task_aligned", ',
    )
    run(copy, "-m", "pytest", "-q", "tests/assigners", "tests/criterion/test_tables.py", "-k", "nearest or table")
    words = ["--assigner.kind=nearest", "--loss.cls_target=one", "--loss.box_weight=one", "--loss.normalizer=positives"]
    shown = run(copy, "-m", "tood_jax.cli.show_config", "--config", "configs/demo.py", *words)
    assert '"kind": "nearest"' in shown


@pytest.mark.slow
def test_the_new_backbone(copy):
    module, branch, field, test = code_blocks("Example: add a backbone")
    (copy / "tood_jax/models/plain_net.py").write_text(module)
    (copy / "tests/models/test_plain_net.py").write_text(test)
    build = copy / "tood_jax/models/build.py"
    replace(build, "\nfrom tood_jax", "\nfrom tood_jax.models import plain_net\nfrom tood_jax")
    replace(build, "-> ResNet:", "-> ResNet | plain_net.PlainNet:")
    replace(build, "    backbone = config.backbone\n", branch)
    replace(copy / "tood_jax/config/schema.py", "    depth: Literal", f"{field}    depth: Literal")
    run(copy, "-m", "pytest", "-q", "tests/models", "-k", "plain_net")
    assert '"kind": "plain"' in run(
        copy, "-m", "tood_jax.cli.show_config", "--config", "configs/demo.py", "--backbone.kind=plain"
    )
