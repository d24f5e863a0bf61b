"""The wheel: it has all that a user needs, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.runs import ROOT

BUILD = """import sys, setuptools.build_meta as backend
print(getattr(backend, sys.argv[1])(sys.argv[2]))"""
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
# The smallest network and four steps, on the set that the test generates.
TINY = [
    "--backbone.width=8",
    "--head.channels=16",
    "--head.num_convs=2",
    "--head.norm_groups=4",
    "--neck.channels=16",
    "--data.buckets=64x64",
    "--data.train_short_side=64,64",
    "--data.eval_short_side=64",
    "--data.max_long_side=64",
    "--data.train.images=set/train",
    "--data.train.annotations=set/annotations/instances_train.json",
    "--data.val.images=set/val",
    "--data.val.annotations=set/annotations/instances_val.json",
    "--assigner.warmup_epochs=0",
    "--train.epochs=1",
    "--train.eval_every_epochs=0",
    "--optimizer.warmup_steps=0",
    "--detect.score_threshold=0.001",
    "--train.workdir=runs/tiny",
]


def build(kind, source, out):
    """Build a "wheel" or an "sdist" of a source tree with the installed setuptools; the file."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the unpacked sdist, which is built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / "source")
    for name in ("tood_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(build("sdist", folder / "source", folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder)


def test_it_has_every_module_and_every_config_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "tood_jax").rglob("*.py")}
    configs = {f"tood_jax/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.py")}
    assert names == modules | configs | {"tood_jax/py.typed"}


def test_its_metadata_is_complete(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_string(archive.read(file).decode())
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "tood = tood_jax.cli.main:main" in archive.read(entry_points).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Requires-Python"] == ">=3.11"
    assert len(metadata.get_all("Project-URL")) >= 2
    assert "Programming Language :: Python :: 3.13" in metadata.get_all("Classifier")


@pytest.fixture(scope="module")
def tood(wheel, tmp_path_factory):
    """Run a program of a fresh environment with the wheel, in an empty folder; its output.

    The environment sees the packages of this one by a .pth file, whose own .pth files (an editable tood_jax) are not
    read.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, env=environment, check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    (folder / "empty").mkdir()
    environment["JAX_NUM_CPU_DEVICES"] = "1"

    def run(program, *words):
        command = [folder / "venv" / "bin" / program, *words]
        done = subprocess.run(
            command, cwd=folder / "empty", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_it_trains_evaluates_and_predicts_outside_a_checkout(tood):
    location = tood("python", "-c", "import tood_jax; print(tood_jax.__file__)")
    assert Path(location.strip()).parts[-3:] == ("site-packages", "tood_jax", "__init__.py")
    assert "venv" in location
    assert "tood COMMAND [options]" in tood("tood", "--help")
    assert "tood_r50_fpn_1x_coco  " in tood("tood", "configs")
    assert "tood_jax 0." in tood("tood", "--version")
    tood("python", "-m", "tood_jax.data.synthetic", "--out", "set", "--train=16", "--val=4", "--size=64")
    assert "Next: tood eval --checkpoint runs/tiny" in tood("tood", "train", "--config", "small_set", *TINY)
    assert "AP50" in tood("tood", "eval", "--checkpoint", "runs/tiny")
    assert "4 images" in tood("tood", "predict", "--checkpoint", "runs/tiny", "--images", "set/val", "--out", "drawn")
    assert "runs/tiny  small_set  " in tood("tood", "runs")
    assert "checkpoint: step 4, " in tood("tood", "info", "--checkpoint", "runs/tiny")
    assert "Wrote tiny.safetensors" in tood("tood", "convert", "--weights", "runs/tiny", "--out", "tiny.safetensors")
