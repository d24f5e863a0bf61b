"""tood configs, tood runs and tood info."""

import json
import math
import re
from dataclasses import replace

import pytest

from tests.tiny import tiny_config
from tood_jax.checkpoint.reader import pack_about
from tood_jax.cli import configs, runs
from tood_jax.config import Config, save_config, to_dict
from tood_jax.models.build import build_model
from tood_jax.tools import info
from tood_jax.weights.shapes import variable_shapes


def table(capsys):
    """The printed lines, as lists of cells."""
    return [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]


def test_configs_have_published_ap_and_settings(capsys):
    configs.main([])
    rows = {row[0]: row[1:] for row in table(capsys)}
    settings = ["X-101 64x4d, DCN c4–c5", "T-head ×6, DCN", "task_aligned", "480–800", "24"]
    assert rows["tood_x101_64x4d_fpn_dconv_c4_c5_ms_2x_coco"] == ["50.5", *settings]
    assert rows["tood_r50_fpn_anchor_based_1x_coco"][2] == "T-head ×6, anchors"
    assert rows["small_set"][:2] == ["–", "R-18, width 16"]
    assert rows["rivals/gfl_r50_fpn_1x_coco"][0] == "40.2"


def test_files_in_the_folder_here_are_listed_and_not_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text('"""My own."""\nraise SystemExit("it was run")', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    configs.main([])
    output = capsys.readouterr().out
    assert "\n  mine  My own.\n" in output
    assert "tood_r50_fpn_1x_coco" in output


def write_run(folder, lines, config='{"name": "tiny"}', steps=()):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "config.json").write_text(config, encoding="utf-8")
    for step in steps:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)


def row(step, ap=None):
    return json.dumps({"step": step, "kind": "train" if ap is None else "eval", "AP": ap})


def test_runs_have_their_steps_and_ap(tmp_path, capsys):
    killed = '{"step": 99, "kind": "tr'
    write_run(tmp_path / "a", [row(10), row(20, 0.5), row(40, 0.25), row(50), killed], steps=(20, 40))
    write_run(tmp_path / "b", [row(4), row(4, "nan")])
    runs.main([f"{tmp_path}/*"])
    header, *rows = table(capsys)
    assert tuple(header) == runs.HEADER
    assert rows == [
        [str(tmp_path / "a"), "tiny", "50", "25.0", "40", "50.0", "20, 40"],
        [str(tmp_path / "b"), "tiny", "4", "–", "–", "–", "–"],
    ]


def test_a_converted_checkpoint_is_a_run_too(tmp_path, capsys):
    about = tmp_path / "checkpoints" / "0" / "about"
    about.mkdir(parents=True)
    content = pack_about({"step": 0, "config": to_dict(Config(name="converted"))}, {})
    (about / "about.json").write_text(json.dumps(content), encoding="utf-8")
    runs.main([str(tmp_path)])
    assert table(capsys)[1][1:] == ["converted", "0", "–", "–", "–", "0"]
    (about / "about.json").write_text("{}", encoding="utf-8")
    runs.main([str(tmp_path)])
    assert "has a wrong checksum" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "config", "reason"),
    [
        ([row(1)], "{", "config.json is not JSON"),
        ([row(1)], "[]", "config.json has no name"),
        ([row(1)], '{"name": 3}', "config.json has no name"),
        (["x", "[]", '{"step": -1}'], '{"name": "x"}', "metrics.jsonl has no line that can be read"),
    ],
)
def test_a_broken_folder_is_a_row_with_the_reason(tmp_path, capsys, lines, config, reason):
    write_run(tmp_path / "broken", lines, config)
    write_run(tmp_path / "good", [row(7)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    runs.main([*(str(tmp_path / name) for name in ("broken", "good", "empty", "file", "absent"))])
    _, broken, good, *others = table(capsys)
    assert broken[1].startswith(f"({reason}")
    assert good[1:3] == ["tiny", "7"]
    assert [cells[1] for cells in others] == [
        "(not a run: it has no config.json, metrics.jsonl or checkpoints)",
        "(not a folder)",
        "(no such folder)",
    ]


def test_info_of_a_config(tmp_path, capsys):
    """The tiny network, with a frozen backbone: its numbers by part, and their sum."""
    config = tiny_config(tmp_path, tmp_path)
    config = replace(config, backbone=replace(config.backbone, frozen_stages=4))
    save_config(config, tmp_path / "x.json")
    info.main(["--config", str(tmp_path / "x.json"), "--num_classes=7", "--canvas=64x96"])
    lines = table(capsys)
    rows = {cells[0]: cells[1:] for cells in lines if len(cells) == 4}
    shapes = variable_shapes(build_model(config, 7))
    count = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
    assert rows["sum"][0] == f"{count:,}"
    assert rows["backbone"][1] == "0"
    assert rows["head"][0] == rows["head"][1]
    assert all(re.fullmatch(r"0\.\d\d G", rows[name][2]) for name in ("backbone", "neck", "head", "sum"))
    assert lines[0] == ["tiny: R-18, width 8, T-head ×2, task_aligned"]
    assert ["classes: 7"] in lines
    assert ["multiply-adds: one image on a canvas of 64×96"] in lines


def test_info_refuses_a_canvas_that_the_network_does_not_take(capsys):
    with pytest.raises(SystemExit):
        info.main(["--config", "small_set", "--canvas=65x96"])
    assert "multiples of 32" in capsys.readouterr().err
