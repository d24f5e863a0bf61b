"""python -m tood_jax.cli.convert and train.py --init_from, end to end on a tiny set."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.tiny import tiny_config
from tests.weights.made import assert_same, imagenet_file, small_state_dict
from tood_jax.cli import convert, evaluate, predict, train
from tood_jax.config import DetectConfig, save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.training.checkpoint_files import named_leaves
from tood_jax.training.checkpoints import open_checkpoint
from tood_jax.weights.files import read_weights, write_weights

CLASSES = ("disc", "box", "triangle", "star")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny set, a config (tiny.json) and a published detector for it (tood.safetensors)."""
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


def run(place, *words):
    convert.main(["--config", str(place[0] / "tiny.json"), *map(str, words)])


@pytest.fixture(scope="module")
def converted(place):
    """The published detector as a checkpoint."""
    run(place, "--weights", place[0] / "tood.safetensors", "--out", place[0] / "tood")
    return place[0] / "tood"


def test_a_published_file_is_evaluated_and_drawn(place, converted, capsys, tmp_path):
    evaluate.main(["--checkpoint", str(converted), "--out", str(tmp_path / "results.json")])
    said = capsys.readouterr().out
    assert "AP50" in said
    assert "in 4 images" in said
    assert json.loads((tmp_path / "results.json").read_text())
    predict.main(
        ["--checkpoint", str(converted), "--images", str(place[0] / "set/val"), "--out", str(tmp_path / "out")]
    )
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4


def test_the_checkpoint_says_what_it_is(place, converted):
    checkpoint = open_checkpoint(converted)
    assert checkpoint.step == 0
    assert [one["name"] for one in checkpoint.about["classes"]] == list(CLASSES)
    annotations = json.loads((place[0] / "set/annotations/instances_val.json").read_text())
    assert checkpoint.about["classes"] == [{"id": one["id"], "name": one["name"]} for one in annotations["categories"]]


@pytest.mark.parametrize("names", ["mmdetection", "authors", "flax"])
def test_back_again_bit_by_bit(place, converted, tmp_path, names):
    """Checkpoint → file → checkpoint → file of mmdetection's names: what came in goes out."""
    convert.main(["--weights", str(converted), "--out", str(tmp_path / "x.safetensors"), "--names", names])
    convert.main(["--weights", str(tmp_path / "x.safetensors"), "--out", str(tmp_path / "again")])
    convert.main(
        ["--weights", str(tmp_path / "again"), "--out", str(tmp_path / "y.safetensors"), "--names=mmdetection"]
    )
    expected = {
        name: np.zeros_like(array) if name.endswith("num_batches_tracked") else array
        for name, array in small_state_dict(config=place[1]).items()
    }
    file = read_weights(tmp_path / "y.safetensors")
    assert_same(file.tensors, expected)
    assert file.class_names == CLASSES


def test_a_backbone_there_and_back(place, tmp_path, capsys):
    tensors = imagenet_file(small_state_dict(config=place[1]))
    write_weights(tmp_path / "resnet18.safetensors", tensors, None, {})
    run(place, "--weights", tmp_path / "resnet18.safetensors", "--out", tmp_path / "ours.safetensors")
    said = capsys.readouterr().out
    assert "a backbone, 100 tensors, named as by torchvision; not used: fc.bias, fc.weight." in said
    assert "train.py --config … --init_from" in said
    assert all("/backbone/" in name for name in read_weights(tmp_path / "ours.safetensors").tensors)
    convert.main(
        [
            *("--weights", str(tmp_path / "ours.safetensors"), "--names=torchvision"),
            *("--out", str(tmp_path / "back.safetensors")),
        ]
    )
    expected = {name: np.zeros_like(a) if "num_b" in name else a for name, a in tensors.items() if "fc." not in name}
    assert_same(read_weights(tmp_path / "back.safetensors").tensors, expected)


def test_bgr_is_turned_into_rgb(place, tmp_path, capsys):
    tensors = imagenet_file(small_state_dict(config=place[1]))
    write_weights(tmp_path / "r18_caffe.safetensors", tensors, None, {})
    words = ("--weights", tmp_path / "r18_caffe.safetensors", "--names=torchvision", "--out")
    run(place, *words, tmp_path / "plain.safetensors")
    assert "Note: " in capsys.readouterr().out
    run(place, *words, tmp_path / "swapped.safetensors", "--channel_order=bgr")
    assert "set data.pixel_std=1,1,1" in capsys.readouterr().out
    swapped = read_weights(tmp_path / "swapped.safetensors").tensors
    np.testing.assert_array_equal(swapped["conv1.weight"], tensors["conv1.weight"][:, ::-1])
    np.testing.assert_array_equal(swapped["layer1.0.conv1.weight"], tensors["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 1, "--weights FILE_OR_RUN --out FILE_OR_FOLDER"),
        (["--weights", "/nowhere.pth", "--out", "x"], 1, "no file /nowhere.pth"),
        (["--weights", "ROOT/set", "--out", "x"], 1, "no checkpoint in"),
        (["--weights", "ROOT/tiny.json", "--out", "x"], 1, "must end in .pth, .pt or .safetensors"),
        (["--weights", "ROOT/tood.safetensors", "--out", "ROOT/tood.safetensors"], 1, "or replace it with --overwrite"),
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
def test_what_is_wrong_is_said_in_one_sentence(place, capsys, monkeypatch, tmp_path, words, status, said):
    root = place[0]
    write_weights(root / "backbone.safetensors", imagenet_file(small_state_dict(config=place[1])), None, {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(place, *(word.replace("ROOT", str(root)) for word in words))
    output = capsys.readouterr().err
    assert end.value.code == status
    assert said in output
    assert len(output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_all_mismatches_come_in_one_error(place, capsys):
    with pytest.raises(SystemExit):
        run(place, "--weights", place[0] / "tood.safetensors", "--out", "x", "--backbone.depth=34", "--neck.channels=8")
    output = capsys.readouterr().err
    assert "missing: backbone.layer1.2.conv1.weight [8, 8, 3, 3]" in output
    assert "ill-shaped: neck.fpn_convs.0.conv.weight is [16, 16, 3, 3], should be [8, 8, 3, 3]" in output


def begin(place, workdir, *words):
    """train.py for one step so short that the weights stay what they were; what it said."""
    config = ["--config", str(place[0] / "tiny.json"), f"--train.workdir={workdir}"]
    train.main([*config, *map(str, words)])
    return (workdir / "train.log").read_text()


def close(ours, theirs):
    return {name for name in theirs if np.allclose(ours[name], theirs[name], rtol=0, atol=1e-6)}


@pytest.fixture(scope="module")
def continued(place, converted):
    """(folder, log) of a run that begins with the converted checkpoint."""
    workdir = place[0] / "continued"
    return workdir, begin(place, workdir, "--init_from", converted)


def test_training_begins_with_a_checkpoint(converted, continued):
    source = open_checkpoint(converted)
    theirs = named_leaves(source.arrays(*source.groups))
    ours = named_leaves(open_checkpoint(continued[0], "latest").arrays("params", "batch_stats", "ema"))
    assert close(ours, theirs) == theirs.keys()
    params = {name.removeprefix("params/"): array for name, array in theirs.items() if name.startswith("params/")}
    ema = {name.removeprefix("ema/"): array for name, array in ours.items() if name.startswith("ema/")}
    assert close(ema, params) == params.keys() == ema.keys()
    assert re.search(r"Loaded (\d+) of \1 tensors from .*: backbone, neck and head\.", continued[1])
    assert "freezes layers" not in continued[1]


def test_a_run_that_goes_on_does_not_begin_again(place, continued):
    log = begin(place, continued[0], "--init_from", "/nowhere.pth")
    assert "--init_from is not used: this run goes on from its own checkpoint." in log


def test_without_weights_frozen_layers_are_noted(place, tmp_path):
    assert "freezes layers that start from random weights: load a backbone with --init_from" in begin(
        place, tmp_path / "run"
    )


def test_a_wrong_file_ends_the_run_before_it_begins(place, tmp_path, capsys):
    write_weights(tmp_path / "x.safetensors", {"conv1.weight": np.zeros(3), "layer1.0.x": np.zeros(1)}, None, {})
    with pytest.raises(SystemExit) as end:
        begin(place, tmp_path / "run", "--init_from", tmp_path / "x.safetensors")
    assert end.value.code == 1
    output = capsys.readouterr().err
    assert "ill-shaped: conv1.weight is [3], should be [8, 3, 7, 7]" in output
    assert "unexpected: layer1.0.x [1]" in output
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.torch
def test_a_published_pth_there_and_back(place, tmp_path, capsys):
    """A user's path: the downloaded .pth becomes a checkpoint, is evaluated, and goes back to mmdetection."""
    torch = pytest.importorskip("torch")
    state_dict = {name: torch.from_numpy(array) for name, array in small_state_dict(config=place[1]).items()}
    meta = {"dataset_meta": {"classes": CLASSES}, "epoch": 12}
    torch.save({"state_dict": state_dict, "meta": meta}, tmp_path / "tood.pth")
    run(place, "--weights", tmp_path / "tood.pth", "--out", tmp_path / "tood")
    evaluate.main(["--checkpoint", str(tmp_path / "tood"), "--out", str(tmp_path / "results.json")])
    assert "AP50" in capsys.readouterr().out
    convert.main(["--weights", str(tmp_path / "tood"), "--out", str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"]["dataset_meta"]["classes"] == CLASSES
    assert back["state_dict"].keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert name.endswith("num_batches_tracked") or torch.equal(back["state_dict"][name], tensor)
    convert.main(["--weights", str(tmp_path / "back.pth"), "--out", str(tmp_path / "again.safetensors")])
    begin(place, tmp_path / "run", "--init_from", tmp_path / "back.pth")
