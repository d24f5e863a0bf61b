"""The kill-and-resume case itself, and its comparison of two runs."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.cases import kill_and_resume
from tood_jax.checkpoint.store import CheckpointStore


def make_run(folder, weight=1.0, loss=0.5, next_batch=9):
    with CheckpointStore(folder / "checkpoints", 1) as store:
        state = {"params": {"w": np.full(4, weight)}, "opt_state": {"w": np.zeros(4)}}
        store.save(9, state, {"data": {"seed": 0, "next_batch": next_batch}, "unlogged": []}, {"AP": 0.5})
    rows = [
        {"step": 9, "kind": "train", "loss": loss, "time": str(folder), "speed": {"images_per_s": len(str(folder))}}
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_comparison_sees_what_differs(tmp_path):
    one = make_run(tmp_path / "one")
    kill_and_resume.compare(one, make_run(tmp_path / "another one"))
    nearly = np.nextafter(1.0, 2)
    for name, difference in (
        ({"weight": nearly}, "params"),
        ({"loss": nearly}, "metrics.jsonl"),
        ({"next_batch": 8}, "data"),
    ):
        other = make_run(tmp_path / "other", **name)
        with pytest.raises(kill_and_resume.ResumeError, match=difference):
            kill_and_resume.compare(one, other)
        shutil.rmtree(other)


@pytest.mark.slow
def test_twenty_kills(tmp_path, capsys):
    report = kill_and_resume.main(["--kills=20", f"--out={tmp_path}/report.json", f"--folder={tmp_path}/runs"])
    assert len(report["kills"]) == 20
    assert len({kill["signal"] for kill in report["kills"]}) > 1
    assert report["goodput"]["unbroken"]["steps"] > report["goodput"]["broken"]["steps"] > 0
    assert "bit-identical" in capsys.readouterr().out
