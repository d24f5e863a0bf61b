"""python -m tood_jax.cli.convert and train.py --init_from, end to end on a tiny set."""

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest

from tests.tiny import tiny_config
from tests.weights.example_weights import assert_same, imagenet_file, small_state_dict
from tood_jax.checkpoint.reader import named_leaves
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.cli import convert, evaluate, predict, train
from tood_jax.config import DetectConfig, save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.training import loop
from tood_jax.weights.files import read_weights, write_weights

CLASSES = ("disc", "box", "triangle", "star")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(folder with a tiny data set, its config tiny.json and a published detector tood.safetensors; the config)."""
    root = tmp_path_factory.mktemp("convert")
    write_shapes(root / "set", ShapesConfig(train_images=8, val_images=4, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(root / "set", root / "run", batch_size=8, eval_batch_size=8, epochs=1, eval_every_epochs=0)
    config = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, norm="frozen_batch", frozen_stages=1),
        neck=dataclasses.replace(config.neck, norm="none"),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-12, step_epochs=()),
        detect=DetectConfig(score_threshold=0.001),
    )
    save_config(config, root / "tiny.json")
    write_weights(root / "tood.safetensors", small_state_dict(config=config), CLASSES, {})
    return root, config


def run(files, *words):
    convert.main(["--config", str(files[0] / "tiny.json"), *map(str, words)])


@pytest.fixture(scope="module")
def converted(files):
    """The published detector as a checkpoint."""
    run(files, "--weights", files[0] / "tood.safetensors", "--out", files[0] / "tood")
    return files[0] / "tood"


def test_a_published_file_is_evaluated_and_drawn(files, converted, capsys, tmp_path):
    evaluate.main(["--checkpoint", str(converted), "--out", str(tmp_path / "results.json"), "--report=False"])
    output = capsys.readouterr().out
    assert "AP50" in output
    assert "in 4 images" in output
    assert json.loads((tmp_path / "results.json").read_text())
    predict.main(
        ["--checkpoint", str(converted), "--images", str(files[0] / "set/val"), "--out", str(tmp_path / "out")]
    )
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4


def test_the_checkpoint_has_its_classes(files, converted):
    checkpoint = open_checkpoint(converted)
    assert checkpoint.step == 0
    assert [category["name"] for category in checkpoint.about["classes"]] == list(CLASSES)
    annotations = json.loads((files[0] / "set/annotations/instances_val.json").read_text())
    assert checkpoint.about["classes"] == [
        {key: category[key] for key in ("id", "name")} for category in annotations["categories"]
    ]


@pytest.mark.parametrize("names", ["mmdetection", "authors", "flax"])
def test_round_trips_are_exact(files, converted, tmp_path, names):
    """Checkpoint → file → checkpoint → file with mmdetection's names has the original tensors."""
    convert.main(["--weights", str(converted), "--out", str(tmp_path / "x.safetensors"), "--names", names])
    convert.main(["--weights", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "again")])
    convert.main(
        ["--weights", str(tmp_path / "again"), "--out", str(tmp_path / "y.safetensors"), "--names=mmdetection"]
    )
    expected = {
        name: np.zeros_like(array) if name.endswith("num_batches_tracked") else array
        for name, array in small_state_dict(config=files[1]).items()
    }
    file = read_weights(tmp_path / "y.safetensors")
    assert_same(file.tensors, expected)
    assert file.class_names == CLASSES


def test_round_trip_of_a_backbone(files, tmp_path, capsys):
    tensors = imagenet_file(small_state_dict(config=files[1]))
    write_weights(tmp_path / "resnet18.safetensors", tensors, None, {})
    run(files, "--weights", tmp_path / "resnet18.safetensors", "--out", tmp_path / "flax.safetensors")
    output = capsys.readouterr().out
    assert "a backbone, 100 tensors, named as by torchvision; not used: fc.bias, fc.weight." in output
    assert "tood train --config … --init_from" in output
    assert all("/backbone/" in name for name in read_weights(tmp_path / "flax.safetensors").tensors)
    convert.main(
        [
            *("--weights", str(tmp_path / "flax.safetensors"), "--names=torchvision"),
            *("--out", str(tmp_path / "back.safetensors")),
        ]
    )
    expected = {name: np.zeros_like(a) if "num_b" in name else a for name, a in tensors.items() if "fc." not in name}
    assert_same(read_weights(tmp_path / "back.safetensors").tensors, expected)


def test_bgr_is_converted_to_rgb(files, tmp_path, capsys):
    tensors = imagenet_file(small_state_dict(config=files[1]))
    write_weights(tmp_path / "r18_caffe.safetensors", tensors, None, {})
    words = ("--weights", tmp_path / "r18_caffe.safetensors", "--names=torchvision", "--out")
    run(files, *words, tmp_path / "plain.safetensors")
    assert "Note: " in capsys.readouterr().out
    run(files, *words, tmp_path / "swapped.safetensors", "--channel_order=bgr")
    assert "set data.pixel_std=1,1,1" in capsys.readouterr().out
    swapped = read_weights(tmp_path / "swapped.safetensors").tensors
    np.testing.assert_array_equal(swapped["conv1.weight"], tensors["conv1.weight"][:, ::-1])
    np.testing.assert_array_equal(swapped["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 1, "--weights FILE_OR_RUN --out FILE_OR_FOLDER"),
        (["--weights", "/nowhere.pth", "--out", "x"], 1, "no file /nowhere.pth"),
        (["--weights", "ROOT/set", "--out", "x"], 1, "no checkpoint in"),
        (["--weights", "ROOT/tiny.json", "--out", "x"], 1, "must end in .pth, .pt or .safetensors"),
        (["--weights", "ROOT/tood.safetensors", "--out", "ROOT/tood.safetensors"], 1, "would replace the input"),
        (
            ["--weights", "ROOT/tood.safetensors", "--out", "ROOT/backbone.safetensors"],
            1,
            "or replace it with --overwrite",
        ),
        (["--weights", "ROOT/tood.safetensors", "--out", "ROOT/set"], 1, "name a new folder"),
        (
            ["--weights", "ROOT/tood.safetensors", "--out", "x", "--data.val.annotations=y"],
            1,
            "no annotation file",
        ),
        (["--weights", "ROOT/tood.safetensors", "--out", "x", "--names=detectron"], 2, "--names=detectron must be"),
        (["--weights", "ROOT/tood.safetensors", "--step=newest", "--out", "x"], 1, "best, latest or the number"),
        (["--weights", "ROOT/backbone.safetensors", "--out", "x"], 1, "a checkpoint holds a whole detector"),
    ],
)
def test_errors_are_one_sentence(files, capsys, monkeypatch, tmp_path, words, status, message):
    root = files[0]
    write_weights(root / "backbone.safetensors", imagenet_file(small_state_dict(config=files[1])), None, {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(files, *(word.replace("ROOT", str(root)) for word in words))
    output = capsys.readouterr().err
    assert end.value.code == status
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_one_error_lists_all_mismatches(files, capsys):
    with pytest.raises(SystemExit):
        run(files, "--weights", files[0] / "tood.safetensors", "--out", "x", "--backbone.depth=34", "--neck.channels=8")
    output = capsys.readouterr().err
    assert "missing: backbone.layer1.2.conv1.weight [8, 8, 3, 3]" in output
    assert "wrong shape: neck.fpn_convs.0.conv.weight is [16, 16, 3, 3], should be [8, 8, 3, 3]" in output


def begin(files, workdir, *words):
    """Run train.py for one step with almost no learning rate; return its log."""
    config = ["--config", str(files[0] / "tiny.json"), f"--train.workdir={workdir}"]
    train.main([*config, *map(str, words)])
    return (workdir / "train.log").read_text()


def close(found, expected):
    """Names of the tensors that are nearly equal."""
    return {name for name in expected if np.allclose(found[name], expected[name], rtol=0, atol=1e-6)}


@pytest.fixture(scope="module")
def continued(files, converted):
    """(folder, log) of a run that begins with the converted checkpoint."""
    workdir = files[0] / "continued"
    return workdir, begin(files, workdir, "--init_from", converted)


def test_training_begins_with_a_checkpoint(converted, continued):
    source = open_checkpoint(converted)
    expected = named_leaves(source.arrays(*source.groups))
    trained = named_leaves(open_checkpoint(continued[0], "latest").arrays("params", "batch_stats", "ema"))
    assert close(trained, expected) == expected.keys()
    params = {name.removeprefix("params/"): array for name, array in expected.items() if name.startswith("params/")}
    ema = {name.removeprefix("ema/"): array for name, array in trained.items() if name.startswith("ema/")}
    assert close(ema, params) == params.keys() == ema.keys()
    assert re.search(r"Loaded (\d+) of \1 tensors from .*: backbone, neck and head\.", continued[1])
    assert "freezes layers" not in continued[1]


def test_a_resumed_run_ignores_init_from(files, continued):
    log = begin(files, continued[0], "--init_from", "/nowhere.pth")
    assert "--init_from is not used: this run goes on from its own checkpoint." in log


def test_without_weights_frozen_layers_are_noted(files, tmp_path, monkeypatch):
    """With the plan of the run, before the first step is compiled."""
    genuine = loop.log_plan

    def stop_after(*arguments, **options):
        genuine(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "log_plan", stop_after)
    with pytest.raises(SystemExit) as end:
        begin(files, tmp_path / "run")
    assert end.value.code == 75
    log = (tmp_path / "run" / "train.log").read_text()
    assert "freezes layers that start from random weights: load a backbone with --init_from" in log


def test_a_wrong_file_ends_the_run_before_it_begins(files, tmp_path, capsys):
    write_weights(tmp_path / "x.safetensors", {"conv1.weight": np.zeros(3), "layer1.0.x": np.zeros(1)}, None, {})
    with pytest.raises(SystemExit) as end:
        begin(files, tmp_path / "run", "--init_from", tmp_path / "x.safetensors")
    assert end.value.code == 1
    output = capsys.readouterr().err
    assert "wrong shape: conv1.weight is [3], should be [8, 3, 7, 7]" in output
    assert "unexpected: layer1.0.x [1]" in output
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_first_step_that_is_not_finite_blames_the_weights(files, tmp_path, capsys):
    """The weights are finite, but their products are not."""
    tensors = {
        name: array * np.float32(1e25) if array.ndim == 4 else array
        for name, array in small_state_dict(config=files[1]).items()
    }
    write_weights(tmp_path / "x.safetensors", tensors, CLASSES, {})
    with pytest.raises(SystemExit):
        begin(files, tmp_path / "run", "--init_from", tmp_path / "x.safetensors")
    output = capsys.readouterr().err
    assert "Step 0 gave a non-finite" in output
    assert "the cause is in the weights that the run begins with (of --init_from)" in output
    assert "learning rate" not in output


@pytest.mark.torch
def test_round_trip_of_a_published_pth(files, tmp_path, capsys):
    """The downloaded .pth becomes a checkpoint, is evaluated, and is converted back for mmdetection."""
    torch = pytest.importorskip("torch")
    state_dict = {name: torch.from_numpy(array) for name, array in small_state_dict(config=files[1]).items()}
    meta = {"dataset_meta": {"classes": CLASSES}, "epoch": 12}
    torch.save({"state_dict": state_dict, "meta": meta}, tmp_path / "tood.pth")
    run(files, "--weights", tmp_path / "tood.pth", "--out", tmp_path / "tood")
    evaluate.main(["--checkpoint", str(tmp_path / "tood"), "--out", str(tmp_path / "results.json"), "--report=False"])
    assert "AP50" in capsys.readouterr().out
    convert.main(["--weights", str(tmp_path / "tood"), "--out", str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"]["dataset_meta"]["classes"] == CLASSES
    assert back["state_dict"].keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert name.endswith("num_batches_tracked") or torch.equal(back["state_dict"][name], tensor)
    convert.main(["--weights", str(tmp_path / "back.pth"), "--out", str(tmp_path / "again.safetensors")])
    begin(files, tmp_path / "run", "--init_from", tmp_path / "back.pth")
