"""Untrusted JSON is read or refused with one error."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.untrusted.bounded_json import JsonError, as_integer, as_number, as_text, parse_json

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(TREES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_valid_json_is_read(tree, encoding):
    assert parse_json(json.dumps(tree).encode(encoding)) == tree


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b"9" * 10_000, "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html></html>", "HTML"),
        (b"\x1f\x8b\x08\x00", "archive"),
        (b'{"long": 1}', "more than the 5"),
    ],
)
def test_invalid_json_is_refused(data, message):
    with pytest.raises(JsonError, match=message):
        parse_json(data, max_bytes=5 if "more than" in message else 1 << 20)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(JsonError):
        parse_json(data)


@pytest.mark.parametrize("value", [True, None, "3", [], {}, float("inf"), float("nan"), 10**400, -(10**400)])
def test_values_that_are_not_numbers(value):
    assert as_number(value) is None
    assert as_integer(value) is None


def test_numbers_within_bounds():
    assert as_number(3) == 3.0
    assert as_number(0.5, low=0, high=1) == 0.5
    assert as_number(-0.5, low=0, high=1) is None
    assert as_integer(3.0) == 3
    assert as_integer(3.5) is None
    assert as_integer((1 << 64) - 1) == (1 << 64) - 1
    assert as_integer(1 << 64) is None


def test_texts_are_valid_and_bounded():
    assert as_text("raccoon 🦝") == "raccoon 🦝"
    assert as_text(parse_json(b'"\\ud800"')) is None
    assert as_text("a" * 11, max_length=10) is None
    assert as_text(3) is None
