"""The descriptions of a TFDS folder are untrusted: no module that they name is imported."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.data.errors import DataError
from tood_jax.data.formats.tfds import load_tfds

FEATURES = "tensorflow_datasets.core.features"
PAYLOAD = "untrusted_payload"
INFO = {
    "name": "shapes",
    "version": "1.0.0",
    "fileFormat": "array_record",
    "moduleName": f"{PAYLOAD}.shapes_dataset_builder",
    "splits": [
        {
            "name": "train",
            "shardLengths": ["1"],
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
    ],
}
IMAGE = {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": {"dtype": "uint8", "encodingFormat": "jpeg"}}


def dictionary(**features):
    return {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": features}}


def in_sequence(feature):
    return {"pythonClassName": f"{FEATURES}.sequence_feature.Sequence", "sequence": {"feature": feature}}


def as_json_text(feature):
    """Return a feature whose content is JSON in a string, as TFDS before 4.5 wrote it."""
    return {"pythonClassName": f"{FEATURES}.features_dict.FeaturesDict", "jsonFeature": {"json": json.dumps(feature)}}


CONTENTS = st.sampled_from([{"image": {}}, {"tensor": {"dtype": "int64"}}, {"jsonFeature": {"json": "{}"}}])
NAMES = st.sampled_from([f"{PAYLOAD}.Image", f"{PAYLOAD}.inner.Image", f"{PAYLOAD}.{FEATURES}.Image"])


@st.composite
def foreign_features(draw):
    """A feature of a class that does not belong to TFDS, at any depth, in any spelling that TFDS reads."""
    name = draw(NAMES)
    legacy = {"type": name, "content": {"shape": [], "dtype": "int64"}}
    modern = {draw(st.sampled_from(["pythonClassName", "python_class_name"])): name, **draw(CONTENTS)}
    feature = draw(st.sampled_from([legacy, modern, as_json_text({"x": legacy})]))
    is_legacy = feature is legacy
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["dictionary", "sequence", "text"]))
        if is_legacy or kind == "text":
            parent = {"type": f"{FEATURES}.features_dict.FeaturesDict", "content": {"x": feature, "image": legacy}}
            feature = as_json_text({"x": parent if is_legacy else legacy})
            is_legacy = False
        else:
            feature = dictionary(x=feature, image=IMAGE) if kind == "dictionary" else in_sequence(feature)
    return feature if is_legacy or draw(st.booleans()) else dictionary(image=IMAGE, objects=feature)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set in a folder that also contains code and that Python imports from."""
    root = tmp_path_factory.mktemp("untrusted")
    for module in ("", "inner/", "tensorflow_datasets/"):
        package = root / PAYLOAD / module
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
    for module in ("shapes", "shapes_dataset_builder", "builder"):
        (root / PAYLOAD / f"{module}.py").write_text("")
    sys.path.insert(0, str(root))
    yield root / PAYLOAD
    sys.path.remove(str(root))


def describe(folder, features, info=INFO):
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "dataset_info.json").write_text(json.dumps(info))


def load(folder):
    """Load the data set, and return the error and the untrusted modules that were imported."""
    for name in [name for name in sys.modules if name.startswith(PAYLOAD)]:
        del sys.modules[name]
    with pytest.raises(DataError) as caught:
        load_tfds(str(folder), "train")
    assert "\n" not in str(caught.value)
    return str(caught.value), [name for name in sys.modules if name.startswith(PAYLOAD)]


@given(foreign_features(), st.booleans())
def test_no_class_of_another_package_is_imported(folder, feature, in_info):
    describe(folder, IMAGE if in_info else feature, INFO | {"features": feature} if in_info else INFO)
    message, imported = load(folder)
    assert imported == []
    assert f"names the class {PAYLOAD}." in message
    assert "nothing of it was imported" in message


def test_code_beside_the_data_is_not_imported(folder):
    (folder / "coco.py").write_text("")
    describe(folder, dictionary(image=IMAGE))
    message, imported = load(folder)
    assert imported == []
    assert "has the features image: a detection set has" in message


def test_a_type_elsewhere_in_the_description_is_not_a_class(folder):
    schema = {"feature": [{"name": "image", "type": "BYTES"}]}
    describe(folder, dictionary(image=IMAGE), INFO | {"schema": schema})
    assert "a detection set has" in load(folder)[0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"pythonClassName": ', '{"x": NaN}', "<html>", ""])
def test_a_description_that_is_not_json_is_an_error(folder, text):
    describe(folder, dictionary(image=IMAGE))
    Path(folder / "features.json").write_text(text)
    assert "features.json" in load(folder)[0]


def test_deep_nesting_is_searched(folder):
    """The JSON parser allows deeper nesting than a recursive search could follow."""
    feature = {"pythonClassName": f"{PAYLOAD}.Image"}
    for _ in range(300):
        feature = in_sequence(feature)
    describe(folder, feature)
    message, imported = load(folder)
    assert imported == []
    assert "nested too deeply" in message or "names the class" in message
