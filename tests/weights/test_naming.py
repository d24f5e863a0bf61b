"""Kinds of files are recognized by their tensor names, and other networks are refused."""

import pytest

from tests.weights.example_weights import imagenet_file, small_state_dict
from tood_jax.weights.mapping import WeightsError
from tood_jax.weights.naming import authors_name, is_ignored, recognize_kind


def test_kinds_are_recognised():
    state_dict = small_state_dict()
    assert recognize_kind(state_dict, "x") == "mmdetection"
    assert recognize_kind([name for name in state_dict if name.startswith("backbone.")], "x") == "mmdetection"
    assert recognize_kind([authors_name(name) for name in state_dict], "x") == "authors"
    assert recognize_kind(imagenet_file(state_dict), "x") == "torchvision"
    assert recognize_kind(["params/backbone/conv1/kernel"], "x") == "flax"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv1.0.weight", "conv1.1.weight", "bn1.weight", "layer1.0.conv1.weight"], "another stem"),
        (["conv1.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight"], "squeeze-and-excitation"),
        (["blocks.0.attn.qkv.weight", "pos_embed"], "begins with blocks.0.attn.qkv.weight, pos_embed"),
    ],
)
def test_other_networks_are_refused(names, message):
    with pytest.raises(WeightsError, match=message):
        recognize_kind(names, "some.pth")


def test_tensors_without_a_counterpart():
    for name in ("backbone.bn1.num_batches_tracked", "fc.weight", "head.fc.bias", "bbox_head.integral.project"):
        assert is_ignored(name)
    for name in ("backbone.bn1.running_mean", "bbox_head.tood_cls.weight", "layer1.0.conv1.weight"):
        assert not is_ignored(name)
