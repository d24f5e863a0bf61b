"""PyTorch's files, with PyTorch: `make test-torch`."""

import os
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from tests.weights.example_weights import SMALL, assert_same, shapes_of, small_state_dict
from tood_jax.weights.files import read_weights, write_weights
from tood_jax.weights.load import fit_to_model
from tood_jax.weights.mapping import WeightsError

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


def as_torch(state_dict):
    return OrderedDict((name, torch.from_numpy(np.array(array))) for name, array in state_dict.items())


@pytest.fixture(scope="module")
def state_dict():
    return small_state_dict()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
def test_published_forms_are_read(tmp_path, state_dict, wrap, zipped):
    content = as_torch(state_dict)
    content = {wrap: content, "epoch": 12, "meta": {"CLASSES": ("a", "b")}} if wrap else content
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    file = read_weights(tmp_path / "x.pth")
    assert_same(file.tensors, state_dict)
    assert file.class_names == (("a", "b") if wrap else None)


def test_round_trip_and_the_keys_that_mmdetection_reads(tmp_path, state_dict):
    about = {"config": {"name": "x"}}
    write_weights(tmp_path / "x.pth", state_dict, ("a", "b"), about)
    file = read_weights(tmp_path / "x.pth")
    assert_same(file.tensors, state_dict)
    assert (file.class_names, file.about) == (("a", "b"), about)
    raw = torch.load(tmp_path / "x.pth", weights_only=True)
    assert raw["meta"]["dataset_meta"]["classes"] == ("a", "b")
    assert raw["meta"]["CLASSES"] == ("a", "b")
    assert all(isinstance(value, torch.Tensor) for value in raw["state_dict"].values())
    assert raw["state_dict"]["backbone.bn1.num_batches_tracked"].dtype == torch.int64


def test_half_precision_parameters_and_views(tmp_path):
    values = torch.tensor([1.5, -0.15625, 65280.0])
    weights = {
        "module.a": values.half(),
        "module.b": values.bfloat16(),
        "module.c": torch.nn.Parameter(values),
        "module.d": torch.stack([values, values])[1],
        "module.e": values.double(),
    }
    torch.save(weights, tmp_path / "x.pth")
    assert_same(read_weights(tmp_path / "x.pth").tensors, {name: values.numpy() for name in "abcde"})


def test_a_training_checkpoint_of_mmengine(tmp_path, state_dict, monkeypatch):
    """Its log history is pickled with mmengine's class, numpy's functions and getattr; none of them is called."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    modules = {name: types.ModuleType(name) for name in names}

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.arange(3.0), np.ones(3, np.int64)
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self):
            raise AssertionError

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = names[-1], "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = names[-1], "HistoryBuffer.mean"
    modules[names[-1]].HistoryBuffer = HistoryBuffer
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "state_dict": as_torch(state_dict),
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": {"lr": np.float64(0.1)}},
        "meta": {"dataset_meta": {"classes": ("a",), "palette": [(1, 2, 3)]}, "epoch": 12, "score": np.float64(0.4)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]},
    }
    torch.save(content, tmp_path / "epoch_12.pth")
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(tmp_path / "epoch_12.pth", weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    file = read_weights(tmp_path / "epoch_12.pth")
    assert_same(file.tensors, state_dict)
    assert file.class_names == ("a",)
    assert set(torch.serialization.get_safe_globals()) == before


class CallsFunction:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):  # so that the result may itself be called
        raise AssertionError


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, "touch {0}", "posix.system"),
        (eval, "open({0!r}, 'w')", "eval"),
        (exec, "open({0!r}, 'w')", "exec"),
        (os.mkdir, "{0}", "mkdir"),
    ],
)
def test_a_malicious_pickle_is_refused_and_nothing_runs(
    tmp_path, monkeypatch, state_dict, function, arguments, named, zipped
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # some users set this for other programs
    evidence, path = tmp_path / "evidence", tmp_path / "evil.pth"
    evil = CallsFunction(function, arguments.format(str(evidence)))
    torch.save({"state_dict": as_torch(state_dict), "meta": evil}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    assert not evidence.exists()
    assert str(path) in str(error.value)
    assert named in str(error.value)
    assert "refused" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    torch.load(path, weights_only=False)  # the test is valid: loaded without protection, it runs
    assert evidence.exists()


def test_a_placeholder_runs_nothing(tmp_path, state_dict):
    """`getattr` is accepted for mmengine, but replaced: what it would return can't be called."""
    fetched = CallsFunction(getattr, "text", "upper")
    torch.save({"state_dict": as_torch(state_dict), "meta": fetched}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").class_names is None
    for evil in (
        CallsFunction(getattr, CallsFunction(__import__, "os"), "system"),
        CallsFunction(CallsFunction(getattr, "text", "upper")),
    ):
        torch.save({"state_dict": as_torch(state_dict), "meta": evil}, tmp_path / "y.pth")
        with pytest.raises(WeightsError, match="refused"):
            read_weights(tmp_path / "y.pth")


def test_decompression_bombs_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(WeightsError, match="a has more values than the file holds"):
        read_weights(path)
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    with pytest.raises(WeightsError, match="doesn't compress"):
        read_weights(tmp_path / "y.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file(tmp_path, zipped, share):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match="not a whole PyTorch checkpoint") as error:
        read_weights(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no dictionary of tensors; it holds list"),
        ({"epoch": 3, "args": "x"}, "it holds epoch, args"),
        ({}, "it holds nothing"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "b is not a plain tensor but a int"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is not a plain tensor"),
    ],
)
def test_content_without_a_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "x.pth")


def test_other_files_named_pth_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    (tmp_path / "y.pth").write_bytes(b"<html>404</html>")
    (tmp_path / "z.pth").write_bytes(b"")
    for name, message in (("x", "not a whole PyTorch"), ("y", "is an HTML or XML page"), ("z", "not a whole PyTorch")):
        with pytest.raises(WeightsError, match=message) as error:
            read_weights(tmp_path / f"{name}.pth")
        assert len(str(error.value).splitlines()) == 1


def test_a_backbone_file_of_torchvision(tmp_path):
    """A file as torchvision publishes them fits the backbone: same names, same layouts."""
    names = {"conv1.weight": (8, 3, 7, 7), "fc.weight": (10, 64), "fc.bias": (10,)}
    state_dict = small_state_dict()
    file = {name.removeprefix("backbone."): v for name, v in state_dict.items() if name.startswith("backbone.")}
    file |= {name: np.ones(shape, np.float32) for name, shape in names.items()}
    torch.save(as_torch(file), tmp_path / "resnet18.pth")
    weights = fit_to_model(read_weights(tmp_path / "resnet18.pth"), "resnet18.pth", SMALL, shapes_of(SMALL))
    assert weights.kind == "torchvision"
    assert weights.left_out == ("fc.weight", "fc.bias")
