"""The three doors end to end on a tiny set, on eight devices, and what they say when something is wrong."""

import json
import re

import cv2
import numpy as np
import pytest

from tests.data.test_tfds import prepare
from tests.tiny import tiny_config
from tood_jax.cli import evaluate, predict, to_array_record, train
from tood_jax.config import save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data folder, run folder) of a run of three steps."""
    root = tmp_path_factory.mktemp("programs")
    write_shapes(root / "set", ShapesConfig(train_images=12, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    config = tiny_config(root / "set", root / "run", batch_size=8, eval_batch_size=8)
    save_config(config, root / "tiny.json")
    train.main(["--config", str(root / "tiny.json"), "--detect.score_threshold=0.001"])
    return root / "set", root / "run"


def test_eval_prints_and_writes_coco(trained, capsys, tmp_path):
    _, run = trained
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "results.json")])
    said = capsys.readouterr().out
    for word in ("AP50", "AR100", "disc", "star", "in 5 images"):
        assert word in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert results
    assert set(results[0]) >= {"image_id", "category_id", "bbox", "score"}
    assert f"{len(results)} detections in 5 images written" in said


def test_eval_equals_the_evaluation_in_training(trained, capsys, tmp_path):
    _, run = trained
    evaluate.main(["--checkpoint", str(run), "--step=latest", "--out", str(tmp_path / "results.json")])
    table = re.search(r"AP  .*\n\s+([\d.]+)", capsys.readouterr().out)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["kind"] == "eval"
    assert float(table[1]) == pytest.approx(100 * last["AP"], abs=0.051)


def test_eval_of_records_and_of_tfds_finds_the_same(trained, tmp_path):
    data, run = trained
    images, annotations = str(data / "val"), str(data / "annotations/instances_val.json")
    to_array_record.main(["--images", images, "--annotations", annotations, "--out", str(tmp_path / "records")])
    prepared = prepare(annotations, images, tmp_path / "tfds")
    found = {}
    for name, more in (
        ("directory", []),
        ("records", [f"--data.val.records={tmp_path / 'records'}"]),
        ("tfds", [f"--data.val.tfds={prepared}", "--data.val.tfds_split=validation"]),
    ):
        evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / f"{name}.json"), *more])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["records"] == found["directory"]
    for one in found.values():
        one.sort(key=lambda row: (row["image_id"], -row["score"], row["category_id"]))
    assert [row["category_id"] for row in found["tfds"]] == [row["category_id"] for row in found["directory"]]
    for name in ("score", "bbox"):
        ours, theirs = ([row[name] for row in found[one]] for one in ("tfds", "directory"))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_predict_draws_and_writes(trained, capsys, tmp_path):
    data, run = trained
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    images = [str(data / "val"), str(data / "train" / "00000[1-3].jpg"), str(broken)]
    predict.main(["--checkpoint", str(run), "--images", *images, "--out", str(tmp_path / "out"), "--threshold=0.01"])
    said = capsys.readouterr()
    assert "8 images" in said.out
    assert "broken.jpg" in said.err
    drawn = sorted(p for p in (tmp_path / "out").iterdir() if p.suffix == ".jpg")
    assert len(drawn) == 8
    assert cv2.imread(str(drawn[0])).shape == (448, 448, 3)  # small pictures are enlarged by a whole factor
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["category"] for row in rows} <= {"disc", "box", "triangle", "star"}
    assert all(np.isfinite(row["bbox"]).all() for row in rows)


def test_predict_does_not_depend_on_the_company(trained, tmp_path):
    """The detections of eval.py (in a batch) and of predict.py (alone) are the same."""
    data, run = trained
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "batch.json")])
    predict.main(["--checkpoint", str(run), "--images", str(data / "val"), "--out", str(tmp_path / "alone")])
    in_batch = [(one["category_id"], one["score"]) for one in json.loads((tmp_path / "batch.json").read_text())]
    alone = [
        (one["category_id"], one["score"]) for one in json.loads((tmp_path / "alone" / "detections.json").read_text())
    ]
    assert len(in_batch) == len(alone)
    np.testing.assert_allclose(sorted(s for _, s in in_batch), sorted(s for _, s in alone), atol=1e-5)


@pytest.mark.parametrize(
    ("door", "words", "status", "said"),
    [
        (evaluate, [], 1, "name a checkpoint: --checkpoint runs/NAME"),
        (evaluate, ["--checkpoint", "/nowhere"], 1, "no such folder: /nowhere"),
        (evaluate, ["--checkpoint", "RUN", "--step=newest"], 1, "best, latest or the number"),
        (evaluate, ["--checkpoint", "RUN", "--data.vall.images=x"], 2, "--data.val.images"),
        (evaluate, ["--checkpoint", "RUN", "--data.val.annotations=x.json"], 1, "x.json"),
        (predict, ["--checkpoint", "RUN"], 1, "name pictures"),
        (predict, ["--checkpoint", "RUN", "--images", "/nowhere/*.jpg"], 1, "no glob that fits"),
        (train, [], 2, "configs/NAME.py"),
        (train, ["--config", "configs/tood_r50_fpn_1x_coco.py"], 1, "data/coco/annotations/instances_train2017.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(trained, capsys, monkeypatch, tmp_path, door, words, status, said):
    run = str(trained[1])
    if door is train:
        words = [*words, f"--train.workdir={tmp_path}"] if words else words
    with pytest.raises(SystemExit) as end:
        door.main([run if word == "RUN" else word for word in words])
    output = capsys.readouterr().err
    assert end.value.code == status
    assert said in output
    assert len(output.strip().splitlines()) == 1


def test_help_explains_fields(capsys):
    for door in (train, evaluate, predict):
        with pytest.raises(SystemExit) as end:
            door.main(["--help"])
        assert end.value.code in (0, None)
        assert "--" in capsys.readouterr().out


def test_a_batch_that_devices_do_not_divide(trained, capsys, tmp_path):
    config = tiny_config(trained[0], tmp_path / "run", batch_size=6)
    save_config(config, tmp_path / "six.json")
    with pytest.raises(SystemExit) as end:
        train.main(["--config", str(tmp_path / "six.json")])
    assert end.value.code == 1
    assert "6 images can't be split evenly over 8 devices" in capsys.readouterr().err
