"""The table of small sets: every set is what it is called, and a run is trained, looked at, and not trained again."""

import json

import pytest

from benchmarks.cases import small_sets
from tests.benchmarks.conftest import TINY
from tood_jax.data.synthetic import ShapesConfig


def test_only_images_of_one_class_are_kept():
    tree = {
        "images": [{"id": i} for i in (5, 6, 7, 8)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": i, "category_id": c} for i, c in ((5, 2), (6, 1), (7, 1), (7, 2), (8, 2), (8, 2))],
    }
    kept = small_sets.images_of_one_class(tree, "cat", None)
    assert [image["id"] for image in kept["images"]] == [5, 8]
    assert [one["image_id"] for one in kept["annotations"]] == [5, 8, 8]
    assert kept["categories"] == [{"id": 2, "name": "cat"}]
    assert [image["id"] for image in small_sets.images_of_one_class(tree, "cat", 1)["images"]] == [5]


def test_a_set_that_is_not_there():
    with pytest.raises(SystemExit, match="--sets: dogs must be among bccd, raccoon"):
        small_sets.main(["--sets", "dogs"])


@pytest.mark.slow
def test_a_set_is_trained_once_and_a_collapse_is_counted(tmp_path, monkeypatch):
    shapes = ShapesConfig(train_images=8, val_images=4, height=(64, 64), width=(64, 64), max_objects=1, max_side=0.9)
    monkeypatch.setattr(small_sets, "SETS", (small_sets.DataSet("huge", "made here", shapes),))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    out = tmp_path / "report.json"
    # u^200 is 0: nothing is learnt once the ATSS warm-up is over
    collapsing = "--assigner.rescue_iou=0 --assigner.beta=200 --train.collapse_steps=3 --optimizer.warmup_steps=0"
    argv = [
        "--steps", "16", "--seeds", "0", f"--runs={tmp_path / 'runs'}", f"--made={tmp_path / 'made'}", f"--out={out}",
        f"--overrides={TINY} {collapsing}",
    ]  # fmt: skip
    report = small_sets.main(argv)
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    (row,) = report["results"]
    assert row["collapsed"] == 1
    assert row["seeds"]["0"]["rescued"] == 0
    monkeypatch.setattr(small_sets, "run_train", lambda *_: pytest.fail("trained again"))
    assert small_sets.main(argv)["results"] == report["results"]
