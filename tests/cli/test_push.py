"""tood push: the folder that it writes, the upload to a real server, and everything that reads it back."""

import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import tood_jax
from tests.tiny import tiny_config
from tood_jax.checkpoint.reader import named_leaves, nest
from tood_jax.checkpoint.store import CheckpointError, CheckpointStore, open_checkpoint
from tood_jax.cli import convert, evaluate, predict, push
from tood_jax.config import DetectConfig, to_dict
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.models.build import build_model
from tood_jax.tools import info
from tood_jax.weights.files import read_weights
from tood_jax.weights.load import open_source
from tood_jax.weights.model_folder import open_model
from tood_jax.weights.shapes import variable_shapes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a data set, step 6 with AP 0.25, and random weights with a moving average."""
    root = tmp_path_factory.mktemp("push")
    write_shapes(root / "set", ShapesConfig(train_images=8, val_images=4, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(
        root / "set", root / "run", eval_batch_size=8, compiler_options=("xla_cpu_enable_fast_math=false",)
    )
    config = dataclasses.replace(config, detect=DetectConfig(score_threshold=0.001))
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in variable_shapes(build_model(config, 4)).items():
        state[name] = np.abs(rng.normal(name.endswith(("/scale", "/var")), 0.1, shape)).astype(np.float32)
        state[name.replace("params/", "ema/")] = state[name] * np.float32(0.7)
    categories = json.loads((root / "set/annotations/instances_val.json").read_text())["categories"]
    classes = [{key: category[key] for key in ("id", "name")} for category in categories]
    about = {"config": to_dict(config), "classes": classes}
    metrics = {"AP": 0.25, "AP50": 0.5, "AP75": None, "class_ap": [0.1, 0.2, None, 0.3]}
    with CheckpointStore(root / "run/checkpoints", 1) as store:
        store.save(6, nest(state), about, metrics)
    return root / "run"


def weights_of(checkpoint):
    groups = {"ema" if "ema" in checkpoint.groups else "params": "params", "batch_stats": "batch_stats"}
    return named_leaves({new: checkpoint.arrays(old)[old] for old, new in groups.items()})


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


@pytest.fixture(scope="module")
def folder(run):
    push.main([str(run), "user/shapes", "--dry_run"])
    return run / "hub"


def test_a_dry_run_writes_a_folder_that_people_and_programs_read(run, folder):
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "detections.jpg"
    }  # fmt: skip
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(metadata)
    assert values["pipeline_tag"] == "object-detection"
    assert values["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "ap", "name": "AP at IoU 0.50–0.95", "value": 0.25
    }  # fmt: skip
    assert "tood predict --checkpoint hf://user/shapes --images" in text
    assert "| AP at IoU 0.50 | 50.0 |" in text
    assert "| star | 30.0 |" in text
    assert "| triangle" not in text
    assert cv2.imread(str(folder / "detections.jpg")).shape[0] > 400
    assert str(run.parent) not in (folder / "config.json").read_text() + text
    assert str(run.parent).encode() not in (folder / "model.safetensors").read_bytes()


def test_the_folder_is_loaded_bit_exactly_with_its_config_and_classes(run, folder):
    original, opened = open_checkpoint(run), open_model(folder)
    assert_same_bits(weights_of(opened), weights_of(original))
    assert opened.about["classes"] == original.about["classes"]
    assert opened.about["metrics"] == original.about["metrics"]
    expected, found = original.about["config"], opened.about["config"]
    paths = {"images": "", "annotations": ""}
    for split in ("train", "val"):
        assert found["data"][split] == {**expected["data"][split], **paths}
    assert found["train"] == {**expected["train"], "workdir": ""}
    assert {**found, "data": 0, "train": 0} == {**expected, "data": 0, "train": 0}
    assert_same_bits(open_source(folder).tensors, weights_of(original))


def test_a_pushed_run_is_used_by_its_name(run, folder, hub, hub_token, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    push.main([str(run), "user/pushed", "--private", "--picture=False"])
    output = capsys.readouterr().out
    assert re.search(
        r"Uploaded: http.*/user/pushed/commit/\w{40}\. Next: tood predict --checkpoint hf://user/pushed", output
    )
    assert hub.repos["user/pushed"]["private"]
    assert_same_bits(weights_of(open_model("hf://user/pushed")), weights_of(open_checkpoint(run)))
    info.main(["--checkpoint", "hf://user/pushed"])
    captured = capsys.readouterr()
    assert "checkpoint: step 6, AP 25.0, with " in captured.out
    assert re.search(r"hf://user/pushed: revision \w{40}, model.safetensors, sha256 \w{64}", captured.err)
    convert.main(["--weights", "hf://user/pushed", "--out", "x.safetensors"])
    assert_same_bits(read_weights("x.safetensors").tensors, weights_of(open_checkpoint(run)))


@pytest.mark.slow
def test_a_model_on_the_hub_is_evaluated_and_detects_like_its_run(run, folder, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hub.add("user/used", {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")})
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    one, other = tood_jax.load(run)(image), tood_jax.load("hf://user/used")(image)
    assert len(one) > 0
    for field in ("boxes", "scores", "labels", "names"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    predict.main(["--checkpoint", "hf://user/used@main", "--images", str(run.parent / "set/val"), "--out", "drawn"])
    assert len(list(Path("drawn").glob("*.jpg"))) == 4
    val = (
        f"--data.val.images={run.parent}/set/val",
        f"--data.val.annotations={run.parent}/set/annotations/instances_val.json",
    )
    evaluate.main(["--checkpoint", "hf://user/used", *val])
    assert "Step 6 of hf://user/used" in capsys.readouterr().out
    assert json.loads(Path("6.results.json").read_text())


def test_a_branch_is_created_and_named_in_the_card(run, hub, hub_token, tmp_path):
    words = [str(run), "user/branches", "--picture", "False", "--out", str(tmp_path / "out")]
    push.main([*words, "--revision", "v1/final"])
    repo = hub.repos["user/branches"]
    assert "model.safetensors" not in repo["commits"][repo["refs"]["main"]]
    assert b"hf://user/branches@v1%2Ffinal" in repo["commits"][repo["refs"]["v1/final"]]["README.md"]
    assert open_model("hf://user/branches@v1%2Ffinal").step == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a run and a repository: tood push runs/NAME USER/REPO"),
        (["RUN", "user"], "must have the form hf://USER/REPO"),
        (["RUN", "user/x/y.pth"], "must have the form USER/REPO"),
        (["RUN", "user/x@v1"], "must have the form USER/REPO; --revision names a branch"),
        (["hf://user/x", "user/x"], "hf://user/x must be a folder"),
        (["/nowhere", "user/x"], "no such folder: /nowhere"),
        (["RUN", "user/x", "--step", "7"], "no checkpoint of step 7"),
        (["RUN", "user/x", "--out", "RUN"], "has other files: name a new folder"),
        (["RUN", "user/open", "--private"], "user/open exists and is public, so nothing was uploaded"),
        (
            ["RUN", "user/forbidden"],
            r"Error while uploading 'model.safetensors' to the Hub.*refuses access .*status 403",
        ),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(run, hub, hub_token, capsys, words, message):
    commit = hub.add("user/open", {"README.md": b"mine"})
    hub.faults["/lfs"] = "user/forbidden" in words
    with pytest.raises(SystemExit) as exit_:
        push.main([str(run) if word == "RUN" else word for word in words] + ["--picture=False"])
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert hub.repos["user/open"]["refs"]["main"] == commit


def test_without_a_login_the_remedy_is_named(run, hub, capsys):
    with pytest.raises(SystemExit):
        push.main([str(run), "user/new", "--picture=False"])
    assert "refuses access to user/new (status 401): log in with `hf auth login`" in capsys.readouterr().err


def with_config(folder, hub, repo, change):
    """Publish a model whose config.json was changed by a stranger."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    files = {
        "config.json": json.dumps(values).encode(),
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
    }
    hub.add(repo, files)
    return f"hf://{repo}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("format"), "is no model of tood_jax: its config.json has no format"),
        (lambda values: values.pop("classes"), "doesn't name the classes"),
        (lambda values: values.update(classes=[{"id": 1, "name": 2}]), "has no valid 'classes'"),
        (lambda values: values["config"].update(extra=1), "There is no field 'extra'"),
        (lambda values: values["config"]["data"].update(buckets=[[1 << 20, 1 << 20]]), "data.buckets"),
    ],
)
def test_a_strangers_config_is_checked(folder, hub, change, message):
    name = with_config(folder, hub, f"stranger/{re.sub(r'[^a-z]', '', message)[:20]}", change)
    with pytest.raises((CheckpointError, ValueError), match=message):
        tood_jax.load(name)


def test_a_strangers_compiler_options_are_not_used(folder, hub, caplog):
    def change(values):
        values["config"]["train"]["compiler_options"] = ["xla_dump_to=/tmp/x", "xla_embed_ir_in_executable=true"]
        values["later"] = {"key": "of another version"}

    with caplog.at_level("INFO", logger="tood_jax"):
        model = tood_jax.load(with_config(folder, hub, "stranger/options", change))
    assert not any("dump" in option for option in model.config.train.compiler_options)
    assert "xla_dump_to=/tmp/x stored in" in caplog.text
    assert re.search(r"hf://stranger/options: revision \w{40}, model.safetensors, sha256 \w{64}", caplog.text)


def test_weights_alone_are_no_model(hub):
    hub.add("user/weights", {"model.safetensors": b""})
    with pytest.raises(
        CheckpointError, match=r"user/weights has no file config.json at main; it has model.safetensors"
    ):
        tood_jax.load("hf://user/weights")
    with pytest.raises(CheckpointError, match="resnet50 names a file of weights, and not a model"):
        tood_jax.load("resnet50")
