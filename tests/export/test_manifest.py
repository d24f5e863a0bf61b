"""The manifest of an exported folder, the options of `tood export`, and the program before it is compiled."""

import json

import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.cli import export
from tood_jax.export.folder import ExportError, open_exported, write_manifest
from tood_jax.export.program import export_program
from tood_jax.models.build import build_model
from tood_jax.weights.files import write_weights
from tood_jax.weights.shapes import variable_shapes


def written(run, folder):
    about = open_checkpoint(run).about
    programs = [{"canvas": [64, 64], "file": "a.stablehlo"}]
    values = {"classes": about["classes"], "config": about["config"], "step": 0, "stablehlo": {"programs": programs}}
    (folder / "a.stablehlo").write_bytes(b"program")
    write_weights(folder / "weights.safetensors", {"params/a": np.ones(3, np.float32)}, None, {})
    write_manifest(folder, values)
    return json.loads((folder / "manifest.json").read_text())


def test_a_file_is_read_if_its_checksum_is_right(random_run, tmp_path):
    written(random_run, tmp_path)
    opened = open_exported(tmp_path)
    assert opened.programs == {"stablehlo": (("a.stablehlo", (64, 64), 0),)}
    assert opened.classes[0].name
    assert opened.read("a.stablehlo") == b"program"
    (tmp_path / "a.stablehlo").write_bytes(b"Program")
    with pytest.raises(ExportError, match="differs from the sha256"):
        opened.read("a.stablehlo")
    with pytest.raises(ExportError, match=r"has no sha256 of \.\./b"):
        opened.read("../b")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "tood_jax export 99"}, "has no format"),
        ({"classes": [{"id": 1}]}, "has no valid 'classes'"),
        ({"sha256": []}, "has no table 'sha256'"),
        ({"stablehlo": {"programs": [{"canvas": [64], "file": "x"}]}}, "without a canvas"),
        ({"stablehlo": {"programs": [{"canvas": [64, 64], "file": "../x"}]}}, "without a canvas"),
    ],
)
def test_a_manifest_of_another_form_is_refused(random_run, tmp_path, change, sentence):
    manifest = written(random_run, tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ExportError, match=sentence):
        open_exported(tmp_path)


def test_options_are_checked(random_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for options, sentence in (
        (["--out", str(tmp_path)], "has files"),
        (["--out", str(tmp_path / "new"), "--formats=tflite"], "must be one or more of stablehlo"),
        (["--out", str(tmp_path / "new"), "--compared_images=-1"], "must be 0 or more"),
        ([], "--out is empty"),
    ):
        with pytest.raises(SystemExit):
            export.main(["--checkpoint", str(random_run), *options])
        assert sentence in capsys.readouterr().err


def test_one_program_serves_all_platforms_and_sizes(tmp_path):
    config = tiny_config(tmp_path, tmp_path)
    model = build_model(config, 3, platform="cpu")
    weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in variable_shapes(model).items()}
    program = export_program(model, config, (64, 96), weights)
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval.shape) for aval in program.out_avals] == ["(b, 100, 4)", "(b, 100)", "(b, 100)", "(b,)"]
    assert str(program.in_avals[-2].shape) == "(b, h, w, 3)"
    assert len(program.mlir_module()) > 100_000
