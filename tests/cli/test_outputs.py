"""Outputs replace neither inputs nor files that the program did not write, whatever the name or link."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tood_jax.cli import convert, to_array_record, train
from tood_jax.cli.outputs import (
    check_output_file,
    check_output_folder,
    is_results_file,
    starts_with_keys,
)
from tood_jax.cli.written_files import MARKER, WrittenFiles
from tood_jax.config import ConfigError
from tood_jax.data.errors import DataError
from tood_jax.tools.compile_for import main as compile_for

ROWS = [{"image_id": f"a{i}.jpg", "category_id": 1, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5} for i in range(3)]


@pytest.mark.parametrize("link", ["itself", "symbolic", "hard", "through a folder"])
def test_an_input_is_not_replaced_through_a_link(tmp_path, link):
    source = tmp_path / "in" / "a.json"
    source.parent.mkdir()
    source.write_text(json.dumps(ROWS))  # the format of an output does not matter
    out = tmp_path / "out.json"
    if link == "itself":
        out = tmp_path / "in" / ".." / "in" / "a.json"
    elif link == "symbolic":
        out.symlink_to(source)
    elif link == "hard":
        os.link(source, out)
    else:
        (tmp_path / "other").symlink_to(source.parent)
        out = tmp_path / "other" / "a.json"
    with pytest.raises(ConfigError, match=r"^--out=.* would replace the input .*a\.json: name another file\.$"):
        check_output_file("--out", out, is_results_file, [tmp_path / "none", source])


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        (json.dumps(ROWS), True),
        ("[]", True),
        (" [\n ]", True),
        ("", True),
        (json.dumps({"images": [], "annotations": [{"image_id": 1, "score": 2}]}), False),
        ("[1, 2]", False),
        ("my notes", False),
        ("[[ my notes", False),
    ],
)
def test_only_results_are_replaced_by_results(tmp_path, content, allowed):
    (tmp_path / "a.json").write_text(content)
    if allowed:
        check_output_file("--out", tmp_path / "a.json", is_results_file)
    else:
        with pytest.raises(ConfigError, match="was not written by this program"):
            check_output_file("--out", tmp_path / "a.json", is_results_file)


def test_paths_that_are_not_files(tmp_path):
    check_output_file("--out", tmp_path / "none" / "a.json", is_results_file)
    check_output_file("--out", "/dev/null", is_results_file)
    with pytest.raises(ConfigError, match="is a folder: name a file in it"):
        check_output_file("--out", tmp_path, is_results_file)
    for check in (check_output_folder, lambda option, path: check_output_file(option, path, None)):
        with pytest.raises(ConfigError, match="--out is empty"):
            check("--out", "")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is not a folder"):
        check_output_folder("--out", tmp_path / "file")


def test_keys_must_be_in_order():
    is_own_format = starts_with_keys("command", "jax")
    assert is_own_format(b'{"command": [], "jax": "1"}')
    assert not is_own_format(b'{"jax": "1", "command": []}')
    assert not is_own_format(b'["command", "jax"]')


def test_written_files_are_recognized_by_their_content(tmp_path):
    files = WrittenFiles(tmp_path)
    files.write("a.jpg", b"drawing")
    files.write("ä\n.jpg", b"drawing")
    (tmp_path / "b.jpg").write_bytes(b"other content")
    for again in (files, WrittenFiles(tmp_path)):
        assert again.has("a.jpg")
        assert again.has("ä\n.jpg")
        assert not again.has("b.jpg")
        assert not again.has("none.jpg")
    files.write("a.jpg", b"another drawing")
    assert WrittenFiles(tmp_path).has("a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"other content")
    assert not WrittenFiles(tmp_path).has("a.jpg")
    os.mkfifo(tmp_path / "c.jpg")
    with (tmp_path / MARKER).open("a") as marker:
        marker.write('{"name": "c.jpg", "hash": "0"}\n{"name": "b.jp')
    assert not WrittenFiles(tmp_path).has("c.jpg")


@given(st.binary(max_size=300))
def test_any_content_of_the_list_can_be_read(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("own")
    (folder / MARKER).write_bytes(content)
    assert not WrittenFiles(folder).has("a.jpg")


def test_compile_for_refuses_before_it_compiles(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"name": "a config"}))
    (tmp_path / "hlo").mkdir()
    (tmp_path / "hlo" / "train_2.txt").write_text("my notes")
    with pytest.raises(ConfigError, match="--json="):
        compile_for.check_outputs(compile_for.Args(json=str(tmp_path / "a.json")))
    with pytest.raises(ConfigError, match=r"--hlo=.*train_2\.txt exists"):
        compile_for.check_outputs(compile_for.Args(hlo=str(tmp_path / "hlo")))
    compile_for.check_outputs(compile_for.Args(hlo=str(tmp_path / "hlo"), program="evaluate"))


def test_convert_refuses_to_replace_what_it_converts(tmp_path, capsys):
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"weights")
    os.link(weights, tmp_path / "b.pth")
    for out in ("a.safetensors", "b.pth"):
        with pytest.raises(SystemExit):
            convert.main(["--weights", str(weights), "--out", str(tmp_path / out), "--overwrite"])
        assert "would replace the input" in capsys.readouterr().err
    assert weights.read_bytes() == b"weights"


def test_records_do_not_replace_other_files(shapes_files, tmp_path):
    images, annotations = shapes_files
    with pytest.raises(DataError, match="is the folder of the images"):
        to_array_record.convert(to_array_record.Args(images, annotations, f"{images}/../images"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=r"records\.json exists and was not written by this program"):
        to_array_record.convert(to_array_record.Args(images, annotations, str(tmp_path / "out")))
    assert (tmp_path / "out" / "records.json").read_text() == '{"mine": 1}'


def test_a_run_does_not_replace_the_config_of_another_program(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model": "mine"}')
    with pytest.raises(SystemExit) as ended:
        train.main(["--config=demo", f"--train.workdir={tmp_path}"])
    assert ended.value.code == 1
    assert "--train.workdir" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == '{"model": "mine"}'


@pytest.fixture
def shapes_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": []}')
    return str(tmp_path / "images"), str(tmp_path / "instances.json")
