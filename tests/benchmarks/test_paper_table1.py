"""Counts of parameters and multiply-adds beside the paper's."""

import json

import pytest

from benchmarks.cases import paper_table1
from benchmarks.harness.options import RESULTS, ROOT


def test_table1_equals_the_papers(measured, monkeypatch, capsys):
    committed = json.loads((RESULTS / "paper_table1.json").read_text(encoding="utf-8"))["results"]
    assert [(row["detector"], row["head"]) for row in committed] == [row[:2] for row in paper_table1.ROWS]
    for row in committed:
        assert abs(row["difference"]["trained"]) < 0.002
        assert row["papers_way"]["multiply_adds"] == pytest.approx(1e9 * row["multiply_adds"], rel=3e-4)
        assert row["papers_way"]["trained"] == pytest.approx(1e6 * row["trained"], rel=3e-4)
        assert (abs(row["difference"]["multiply_adds"]) > 0.005) == bool(row["note"]) == (row["detector"] == "FCOS")

    monkeypatch.setattr(paper_table1, "ROWS", paper_table1.ROWS[3:7:3])  # counted again: all of them take too long
    t_head, parallel = measured(paper_table1)["results"]
    assert [t_head, parallel] == committed[3:7:3]
    assert (t_head["head"], parallel["head"]) == ("T-head", "parallel")
    locations = 16000 + 4000 + 1000 + 260 + 70
    assert parallel["counts"]["head_parameters"] == 8 * (9 * 256**2 + 512) + 9 * 256 * 85 + 85 + 5
    assert parallel["counts"]["head_multiply_adds"] == locations * (8 * 9 * 256**2 + 9 * 256 * 85)
    for row in (t_head, parallel):  # the rest of the network is the same
        assert row["counts"]["multiply_adds"] - row["counts"]["head_multiply_adds"] == 99_661_905_920
    assert "caffe's ResNet-50" in capsys.readouterr().out


def test_table1_of_all_configs(measured, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.py").write_text((ROOT / "configs" / "demo.py").read_text())
    monkeypatch.setattr(paper_table1, "ROOT", tmp_path)
    (row,) = measured(paper_table1, "--all", "--classes=4", "--height=64", "--width=64")["results"]
    assert row["config"] == "small"
    assert row["counts"]["trained"] == row["counts"]["parameters"] > row["counts"]["head_parameters"] > 0
    assert row["counts"]["multiply_adds"] > row["counts"]["head_multiply_adds"] > 0
