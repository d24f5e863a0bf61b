"""about.json of a stranger's checkpoint: it is read, or refused in one sentence."""

import contextlib
import copy
import json
import math

import ml_dtypes  # noqa: F401  teaches numpy bfloat16
import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from tood_jax.checkpoint.about_json import crc_of_json, parse_about
from tood_jax.checkpoint.reader import (
    DamagedCheckpointError,
    nest,
    open_checkpoint,
    pack_about,
    ranking_metric,
    ranking_value,
    read_leaves,
)
from tood_jax.checkpoint.store import CheckpointStore
from tood_jax.config import Config, to_dict
from tood_jax.training.resume import changed_fields
from tood_jax.untrusted.bounded_json import JsonError

ABOUT = {
    "config": to_dict(Config()),
    "classes": [{"id": 3, "name": "cat"}],
    "metrics": {"AP": 0.5, "APs": None},
    "step": 7,
    "bad_steps": 0,
    "unlogged": [{"loss": 1.0}],
}
LEAVES = {
    "params/a": {"shape": [2, 3], "dtype": "float32", "crc32": 5},
    "params/b": {"shape": [2], "dtype": "bfloat16", "parts": [[[[0, 1]], 3], [[[1, 2]], 4]]},
    "step": {"shape": [], "dtype": "int32", "crc32": 1},
}


def sealed(record):
    """The bytes of about.json with the right checksum."""
    return json.dumps({**record, "crc32": crc_of_json(json.loads(json.dumps(record)))}).encode()


def paths_in(tree, path=()):
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_in(value, (*path, key))


RECORD = {"about": ABOUT | {"config": {"name": "toy"}}, "leaves": LEAVES}
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["\ud800", "\x1b[2J", 10**12, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed_records(draw):
    """A record with one of its parts replaced, removed or given another name."""
    tree = {"root": copy.deepcopy(RECORD)}
    path = draw(st.sampled_from(list(paths_in(tree))[1:]))
    place = tree
    for key in path[:-1]:
        place = place[key]
    if draw(st.booleans()) and isinstance(place, dict) and len(path) > 1:
        value = place.pop(path[-1])
        if draw(st.booleans()):
            place[draw(st.text(max_size=9) | st.sampled_from(["params", "params/a/b", "\n"]))] = value
    else:
        place[path[-1]] = draw(anything)
    return tree["root"]


@settings(max_examples=500)
@given(changed_records())
def test_a_changed_about_is_of_the_known_types_or_refused(record):
    data = sealed(record) if isinstance(record, dict) else json.dumps(record).encode()
    try:
        about, leaves = parse_about(data)
    except JsonError as error:
        message = str(error)
    else:
        message = ""
        check_use(about, leaves)
    assert message.isprintable()
    assert len(message) < 500


def check_use(about, leaves):
    """What programs do with an about.json is possible."""
    ranking_value(about, ranking_metric(about))
    changed_fields(about.get("config", {}), RECORD["about"]["config"])
    nest(leaves)
    assert all(np.dtype(leaf["dtype"]).itemsize for leaf in leaves.values())
    assert sum(math.prod(leaf["shape"]) for leaf in leaves.values()) <= 1 << 32
    assert all(len(one["name"]) < 5000 for one in about.get("classes", []))
    assert about.get("step", 0) + about.get("bad_steps", 0) >= 0


@given(st.binary() | st.sampled_from([b"[" * 10**5, b'{"about":' * 10**5, b'{"crc32": NaN}', b"1" * 5000, b"null"]))
def test_any_bytes_are_refused(data):
    with contextlib.suppress(JsonError):
        assert not parse_about(data)


def test_what_pack_about_makes_is_read():
    assert parse_about(json.dumps(pack_about(ABOUT, LEAVES)).encode()) == (ABOUT, LEAVES)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (
            {"params/a": {"shape": [10**6, 10**6], "dtype": "float32", "crc32": 0}},
            "describes 1,000,000,000,000 numbers",
        ),
        ({"params/a": {"shape": [0, 10**12], "dtype": "float32", "crc32": 0}}, "describes 1,000,000,000,000 numbers"),
        ({"a": LEAVES["step"], "a/b": LEAVES["step"]}, "names a leaf below another leaf, a"),
        ({"a": {"shape": [-1], "dtype": "float32", "crc32": 0}}, "describes the leaf 'a' otherwise"),
        ({"a": {"shape": [1], "dtype": "object", "crc32": 0}}, "describes the leaf 'a' otherwise"),
        ({"a\x1b": LEAVES["step"]}, r"describes the leaf 'a\\x1b' otherwise"),
    ],
)
def test_leaves_that_no_detector_has_are_refused(leaves, message):
    with pytest.raises(JsonError, match=message):
        parse_about(sealed({"about": {}, "leaves": leaves}))


def test_an_array_on_disk_that_claims_a_million_million_numbers_is_not_read(tmp_path):
    """The table of about.json is honest, and the array's own description is not."""
    with CheckpointStore(tmp_path, 1) as store:
        store.save(1, {"params": {"a": np.ones(4, np.float32), "b": np.ones(2, np.float32)}}, ABOUT)
    state = tmp_path / "1" / "state"
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{state}", "path": "params.a/"}}
    array = tensorstore.open(spec, open=True).result()
    array.resize(exclusive_max=[10**12], expand_only=True).result()
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(DamagedCheckpointError, match=r"params/a is \[1000000000000\] there and \[4\] in about\.json"):
        checkpoint.arrays("params")
    honest = {name: leaf for name, leaf in checkpoint.leaves.items() if name == "params/b"}
    assert read_leaves(checkpoint.folder, honest)["params/b"].tolist() == [1, 1]
