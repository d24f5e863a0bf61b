"""Weights with NaN or infinite values are refused, with the names of the tensors."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.weights.example_weights import SMALL, shapes_of, small_state_dict
from tood_jax.weights.files import WeightsFile, read_weights, write_weights
from tood_jax.weights.finite import check_finite
from tood_jax.weights.load import fit_to_model
from tood_jax.weights.mapping import WeightsError

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@given(
    dtype=st.sampled_from(TYPES),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    data=st.data(),
)
def test_every_tensor_with_such_a_value_is_counted(dtype, sizes, value, data):
    tensors = {f"t{i}": np.ones(size, dtype) for i, size in enumerate(sizes)}
    tensors["steps"] = np.asarray(2**40)
    counts = {name: data.draw(st.integers(0, array.size)) for name, array in tensors.items() if name != "steps"}
    for name, count in counts.items():
        tensors[name][:count] = value
    wrong = {name: count for name, count in counts.items() if count}
    if not wrong:
        check_finite(tensors, "x")
        return
    with pytest.raises(WeightsError) as caught:
        check_finite(tensors, "x")
    message = str(caught.value)
    assert message.startswith(f"x has values that are NaN or infinite in {len(wrong)} of {len(tensors)} tensors, ")
    for name, count in list(wrong.items())[:4]:
        assert f"{name} ({count} of {tensors[name].size})" in message
    assert (f"and {len(wrong) - 4} more" in message) == (len(wrong) > 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_with_such_a_tensor_is_refused(tmp_path, dtype):
    tensors = {name: a.astype(dtype) if a.dtype == np.float32 else a for name, a in small_state_dict().items()}
    tensors["bbox_head.tood_cls.weight"][0] = np.nan
    tensors["backbone.conv1.weight"][0, 0, 0, 0] = np.inf
    write_weights(tmp_path / "x.safetensors", tensors, None, {})
    with pytest.raises(
        WeightsError, match=r"x has .* in 2 of \d+ tensors, params/backbone/conv1/kernel \(1 of 1,176\)"
    ):
        fit_to_model(read_weights(tmp_path / "x.safetensors"), "x", SMALL, shapes_of(SMALL))


def test_a_number_too_large_for_float32_is_refused(tmp_path):
    tensors = small_state_dict()
    tensors["backbone.conv1.weight"] = tensors["backbone.conv1.weight"].astype(np.float64)
    tensors["backbone.conv1.weight"][0] = 1e300
    write_weights(tmp_path / "x.safetensors", tensors, None, {})
    with pytest.raises(WeightsError, match="NaN or infinite in 1 of"):
        fit_to_model(read_weights(tmp_path / "x.safetensors"), "x", SMALL, shapes_of(SMALL))


def test_unused_tensors_may_have_any_value():
    tensors = small_state_dict() | {"fc.bias": np.full(3, np.nan, np.float32)}
    tensors = {name: array for name, array in tensors.items() if name.startswith(("backbone", "fc"))}
    assert fit_to_model(
        WeightsFile({n.removeprefix("backbone."): a for n, a in tensors.items()}, None, {}),
        "x",
        SMALL,
        shapes_of(SMALL),
    )
