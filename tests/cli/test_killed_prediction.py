"""predict.py, killed with SIGKILL at any moment and started again, by one and by two processes."""

import hashlib
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.runs import ROOT
from tests.tiny import tiny_config
from tood_jax.cli import train
from tood_jax.cli.written_files import MARKER
from tood_jax.config import save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of images, run folder); 230 names of 12 images."""
    root = tmp_path_factory.mktemp("killed")
    write_shapes(root / "set", ShapesConfig(train_images=12, val_images=1, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(root / "set", root / "run", batch_size=8, eval_batch_size=8)
    save_config(config, root / "tiny.json")
    train.main(["--config", str(root / "tiny.json"), "--detect.score_threshold=0.001"])
    (root / "images").mkdir()
    images = sorted((root / "set" / "train").iterdir())
    for i in range(230):
        os.link(images[i % 12], root / "images" / f"{i}.jpg")
    return root / "images", root / "run"


def start(trained, out, processes):
    images, run = trained
    launcher = ["-m", "tood_jax.cli.launch", f"-n{processes}", "--devices_per_process=1", f"--logs={out}.logs"]
    words = ["predict.py", "--checkpoint", str(run), "--images", str(images), "--out", str(out), "--draw=False"]
    words += ["--batch=2", "--format", "jsonl", "json", "csv", "--resume"]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(processes), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(out):
    return sum(file.read_bytes().count(b"\n") for file in out.glob("detections.parts/0*.jsonl"))


def hashes(out):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("detections.*[!s]")}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_each_image_has_one_row_after_kills(trained, tmp_path, processes):
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = start(trained, whole, processes)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    assert "230 images" in text
    for wanted in (20, 150):
        process = start(trained, out, processes)
        while rows(out) < wanted and process.poll() is None:
            time.sleep(0.001)
        family = psutil.Process(process.pid).children(recursive=True)  # the launcher's have a session of their own
        for one in [*family, process]:
            one.kill()
        process.wait()
        psutil.wait_procs(family)
        assert rows(out) < 230
        for part in out.glob("detections.parts/0*.jsonl"):
            os.truncate(part, max(0, part.stat().st_size - 30))  # as if the kill came in the middle of a row
    process = start(trained, out, processes)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    assert hashes(out) == hashes(whole)
    assert len(hashes(out)) == 3
    assert not (out / MARKER).exists()
