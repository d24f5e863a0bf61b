"""Files of tensors without PyTorch: .safetensors both ways, and what is wrong with a file, in one sentence."""

import json
import struct
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.weights.made import assert_same, small_state_dict
from tood_jax.weights.files import read_weights, write_weights
from tood_jax.weights.mapping import WeightsError


def test_safetensors_there_and_back(tmp_path):
    tensors = small_state_dict()  # scalars and integers among them
    tensors["a view"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    about = {"config": {"name": "x"}, "classes": [{"id": 3, "name": "é"}]}
    write_weights(tmp_path / "new" / "x.safetensors", tensors, ("é",), about)
    file = read_weights(tmp_path / "new" / "x.safetensors")
    assert_same(file.tensors, tensors)
    assert file.class_names == ("é",)
    assert file.about == about
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_half_precision_becomes_float32_exactly(tmp_path):
    values = np.array([1.5, -0.15625, 65280.0], np.float32)  # exact in both
    tensors = {"a": values.astype(np.float16), "b": values.astype(ml_dtypes.bfloat16), "c": values.astype(np.float64)}
    safetensors.numpy.save_file({"a": tensors["a"], "c": tensors["c"]}, tmp_path / "x.safetensors")
    assert_same(read_weights(tmp_path / "x.safetensors").tensors, {"a": values, "c": values})
    header = json.dumps({"b": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + tensors["b"].tobytes())
    assert_same(read_weights(tmp_path / "y.safetensors").tensors, {"b": values})


def test_prefixes_of_training_programs_are_taken_off(tmp_path):
    tensors = {"module.a.weight": np.ones(2, np.float32), "module.module.b": np.zeros(1, np.float32)}
    write_weights(tmp_path / "x.safetensors", tensors, None, {})
    file = read_weights(tmp_path / "x.safetensors")
    assert file.tensors.keys() == {"a.weight", "module.b"}
    assert file.class_names is None


def safetensors_bytes(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.safetensors", b"", "not a whole"),
        ("x.safetensors", b"abc", "not a whole"),
        ("x.safetensors", safetensors_bytes(b"{}", 2**62), "header too large"),
        ("x.safetensors", safetensors_bytes(b"{}" * 10, 200_000_000), "header too large"),
        ("x.safetensors", safetensors_bytes(b"{]"), "invalid JSON"),
        ("x.safetensors", safetensors_bytes(b"{}"), "holds no tensors"),
        (
            "x.safetensors",
            safetensors_bytes(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'),
            "not a whole",
        ),
        (
            "x.safetensors",
            safetensors_bytes(b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}') + b"0",
            "a has the type F8_E4M3",
        ),
        ("x.ckpt", b"abc", "must end in"),
        (None, b"", "no file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, name, content, said):
    path = tmp_path / (name or "x.pth")
    if name:
        path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    text = str(error.value)
    assert said in text
    assert str(path) in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("version", [None, "2.5.1+cpu", "1.13.0"])
def test_without_a_safe_torch_one_sentence_says_what_to_do(tmp_path, monkeypatch, version):
    old = version and types.SimpleNamespace(__version__=version)  # None: as if it weren't installed
    monkeypatch.setitem(sys.modules, "torch", old)
    (tmp_path / "x.pth").write_bytes(b"abc")
    for act in (
        lambda: read_weights(tmp_path / "x.pth"),
        lambda: write_weights(tmp_path / "y.pth", {"a": np.zeros(1)}, None, {}),
    ):
        with pytest.raises(WeightsError, match=r"PyTorch 2.6 or newer: pip install 'torch>=2.6'") as error:
            act()
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "y.pth").exists()
