"""Which kind of file it is, and which are refused."""

import pytest

from tests.weights.made import imagenet_file, small_state_dict
from tood_jax.weights.mapping import WeightsError
from tood_jax.weights.naming import authors_name, is_ignored, recognise


def test_kinds_are_recognised():
    state_dict = small_state_dict()
    assert recognise(state_dict, "x") == "mmdetection"
    assert recognise([name for name in state_dict if name.startswith("backbone.")], "x") == "mmdetection"
    assert recognise([authors_name(name) for name in state_dict], "x") == "authors"
    assert recognise(imagenet_file(state_dict), "x") == "torchvision"
    assert recognise(["params/backbone/conv1/kernel"], "x") == "flax"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["conv1.0.weight", "conv1.1.weight", "bn1.weight", "layer1.0.conv1.weight"], "another stem"),
        (["conv1.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight"], "squeeze-and-excitation"),
        (["blocks.0.attn.qkv.weight", "pos_embed"], "begins with blocks.0.attn.qkv.weight, pos_embed"),
    ],
)
def test_other_networks_are_refused(names, said):
    with pytest.raises(WeightsError, match=said):
        recognise(names, "some.pth")


def test_what_has_no_counterpart():
    for name in ("backbone.bn1.num_batches_tracked", "fc.weight", "head.fc.bias", "bbox_head.integral.project"):
        assert is_ignored(name)
    for name in ("backbone.bn1.running_mean", "bbox_head.tood_cls.weight", "layer1.0.conv1.weight"):
        assert not is_ignored(name)
