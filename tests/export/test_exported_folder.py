"""`tood export`: the folder that it writes runs alone, and damage is found."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tood_jax import api
from tood_jax.cli import evaluate, export
from tood_jax.export import program
from tood_jax.export.folder import ExportError

pytestmark = pytest.mark.slow

ALONE = """
import runpy, sys
for name in ("tood_jax", "flax", "optax", "orbax", "cv2", "ml_collections"):
    sys.modules[name] = None  # its import fails
sys.argv = sys.argv[1:]
if sys.argv[0].endswith("run_onnx.py"):
    sys.modules["jax"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_manifest_has_the_checksum_of_every_file(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in exported.iterdir()}
    files.pop("manifest.json")
    assert manifest["sha256"] == files
    onnx_files = {"detector_64x64_batch1.onnx", "detector_64x64_batch8.onnx", "run_onnx.py"}
    assert set(files) == {"detector_64x64.stablehlo", "weights.safetensors", "run.py", "parity.json"} | onnx_files
    assert manifest["stablehlo"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert all(len((exported / name).read_text().splitlines()) <= 60 for name in ("run.py", "run_onnx.py"))


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
def test_parity_covers_odd_sizes_and_batches(exported, name):
    parity = json.loads((exported / "parity.json").read_text())[name]
    names = {image["image"] for image in parity["batch 1"]["images"]}
    assert {"1×1", "37×1333", "1333×37", "65×128"} <= names
    assert parity["batch 1"]["detections"] > 100
    assert parity["batch 8"]["images"]
    assert parity["AP"]["exported"] == pytest.approx(parity["AP"]["checkpoint"], abs=0.0005)


@pytest.mark.parametrize("script", ["run.py", "run_onnx.py"])
def test_the_folder_runs_without_this_package(exported, random_run, tmp_path, script):
    copy = shutil.copytree(exported, tmp_path / "copy")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", ALONE, str(copy / script), str(tmp_path / "noise.png")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    expected = api.load(random_run)(pixels)
    assert len(rows) == len(expected) > 10
    np.testing.assert_allclose([row["box"] for row in rows], expected.boxes, atol=1e-3)
    np.testing.assert_allclose([row["score"] for row in rows], expected.scores, atol=1e-4)
    assert [row["category"] for row in rows] == list(expected.names)


@pytest.mark.parametrize("name", ["weights.safetensors", "detector_64x64.stablehlo"])
def test_a_changed_file_is_refused(exported, tmp_path, name):
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ExportError, match=f"{name} differs from the sha256"):
        api.load(copy)


def test_a_program_with_other_results_is_not_exported(random_run, tmp_path, monkeypatch, capsys):
    right = program.canvas_sizes
    monkeypatch.setattr(program, "canvas_sizes", lambda *args: (right(*args)[0], right(*args)[1] * 1.01))
    with pytest.raises(SystemExit) as ended:
        export.main(["--checkpoint", str(random_run), "--out", str(tmp_path / "out"), "--compared_images=0"])
    assert ended.value.code == 1
    assert "gives other detections than the checkpoint on 1×1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def without(folder, name, tmp_path):
    """A copy of an exported folder without the programs of a format."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[name]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("absent", ["onnx", "stablehlo"])
def test_an_exported_folder_is_loaded_like_a_checkpoint(exported, random_run, tmp_path, absent):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 61), (40, 50), (64, 64))]
    detector = api.load(without(exported, absent, tmp_path))
    found, expected = detector(images, batch=2), api.load(random_run)(images)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other) > 10
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    assert detector.class_names == api.load(random_run).class_names


def test_eval_of_an_exported_folder_gives_the_metrics_of_the_checkpoint(exported, random_run, tmp_path, capsys):
    data = random_run.parent / "set"
    split = [f"--data.val.images={data}/val", f"--data.val.annotations={data}/annotations/instances_val.json"]
    results = []
    for checkpoint in (exported, random_run):
        out = tmp_path / f"{checkpoint.name}.json"
        evaluate.main(["--checkpoint", str(checkpoint), "--out", str(out), "--report=False", *split])
        results.append(
            (capsys.readouterr().out.split("detections in")[0].splitlines()[2:], json.loads(out.read_text()))
        )
    (table, one), (other_table, other) = results
    assert table[:-1] == other_table[:-1]
    assert len(one) == len(other) > 100
    np.testing.assert_allclose([row["score"] for row in one], [row["score"] for row in other], atol=1e-4)
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", str(exported), "--detect.nms_iou=0.5", "--report=False", *split])
    assert "are parts of an exported program" in capsys.readouterr().err
