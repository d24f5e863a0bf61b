"""Files of tensors without PyTorch: .safetensors in both directions, and one sentence for each error."""

import copy
import json
import struct
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights.example_weights import assert_same, small_state_dict
from tood_jax.weights.files import read_weights, write_weights
from tood_jax.weights.mapping import WeightsError


def test_safetensors_round_trip(tmp_path):
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


def test_prefixes_of_training_programs_are_removed(tmp_path):
    tensors = {"module.a.weight": np.ones(2, np.float32), "module.module.b": np.zeros(1, np.float32)}
    write_weights(tmp_path / "x.safetensors", tensors, None, {})
    file = read_weights(tmp_path / "x.safetensors")
    assert file.tensors.keys() == {"a.weight", "module.b"}
    assert file.class_names is None


def safetensors_bytes(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


@pytest.mark.parametrize(
    ("name", "content", "message"),
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
        (
            "x.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "Git LFS pointer (run `git lfs",
        ),
        ("x.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer (run `git lfs"),
        ("x.safetensors", b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML or XML page"),
        ("x.pt", b"<html>", "an HTML or XML page"),
        (
            "x.safetensors",
            safetensors_bytes(b'{"\\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
            "names a tensor '\\x1b[2J'",
        ),
        (
            "x.safetensors",
            safetensors_bytes(
                b'{"__metadata__":{"tood_jax":"[[["},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
            )
            + bytes(4),
            "its metadata 'tood_jax' is not JSON",
        ),
        (
            "x.safetensors",
            safetensors_bytes(
                b'{"__metadata__":{"tood_jax":"[]"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
            )
            + bytes(4),
            "its metadata 'tood_jax' is not an object",
        ),
        ("x.ckpt", b"abc", "must end in"),
        (None, b"", "no file"),
    ],
)
def test_errors_are_one_sentence(tmp_path, name, content, message):
    path = tmp_path / (name or "x.pth")
    if name:
        path.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    text = str(error.value)
    assert message in text
    assert str(path) in text
    assert len(text.splitlines()) == 1


def test_a_file_larger_than_any_detector_is_not_read(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file
    with pytest.raises(WeightsError, match=r"has 1,099,511,627,776 bytes, more than the 8,589,934,592"):
        read_weights(tmp_path / "x.safetensors")


HEADER = {
    "__metadata__": {"classes": '["a", "b"]', "tood_jax": '{"config": {}, "classes": []}', "format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
}
texts = st.text(max_size=9) | st.sampled_from(
    ["\ud800", "[" * 10**5, '{"a":' * 999, "NaN", "[NaN]", "9" * 5000, '["\\ud800"]']
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | texts
    | st.sampled_from([10**12, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def paths_in(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_in(value, (*path, key))


def read_or_refuse(folder, content):
    """Read a file of these bytes; return the error message, "" for none."""
    path = folder / "any.safetensors"
    path.write_bytes(content)
    try:
        file = read_weights(path)
    except WeightsError as error:
        return str(error)
    assert sum(array.size for array in file.tensors.values()) <= len(content)
    json.dumps([file.class_names, file.about], ensure_ascii=False).encode()
    return ""


@settings(max_examples=300)
@given(data=st.data())
def test_any_header_is_read_or_refused_in_one_sentence(tmp_path_factory, data):
    tree = {"root": copy.deepcopy(HEADER)}
    path = data.draw(st.sampled_from(list(paths_in(tree))[1:]))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(anything)
    content = safetensors_bytes(json.dumps(tree["root"]).encode()) + bytes(10)
    assert read_or_refuse(tmp_path_factory.getbasetemp(), content).isprintable()


@given(st.binary(max_size=64), st.binary(max_size=64), st.integers(0, 2**64 - 1) | st.integers(0, 99))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory, header, rest, length):
    message = read_or_refuse(tmp_path_factory.getbasetemp(), struct.pack("<Q", length) + header + rest)
    assert message.isprintable()


@pytest.mark.parametrize("version", [None, "2.5.1+cpu", "1.13.0"])
def test_without_a_safe_torch_the_error_names_the_remedy(tmp_path, monkeypatch, version):
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
