"""train.py, eval.py and predict.py end to end on a tiny set, on eight devices, and their errors."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import hotcoco
import numpy as np
import pytest

import tood_jax
from tests.data.formats.test_tfds import prepare
from tests.tiny import tiny_config
from tood_jax.api.rows import encode_row
from tood_jax.checkpoint.about_json import crc_of_json
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.cli import compare, evaluate, predict, to_array_record, train
from tood_jax.cli.prediction.job import Part
from tood_jax.cli.prediction.thresholds import class_thresholds
from tood_jax.cli.prediction.video import Video
from tood_jax.cli.written_files import MARKER
from tood_jax.config import SplitConfig, save_config
from tood_jax.data.errors import DataError
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.distributed.signals import Reason

ROOT = Path(__file__).resolve().parent.parent.parent


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
    output = capsys.readouterr().out
    for word in ("AP50", "AR100", "disc", "star", "in 5 images"):
        assert word in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results
    assert set(results[0]) >= {"image_id", "category_id", "bbox", "score"}
    assert f"{len(results)} detections in 5 images written" in output


def test_eval_and_predict_with_variants_detect_the_same(trained, capsys, tmp_path):
    data, run = trained
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "r.json"), "--report=False", "--tta=flip,0.8"])
    results = json.loads((tmp_path / "r.json").read_text())
    words = ["--checkpoint", str(run), "--images", str(data / "val"), "--out", str(tmp_path / "out"), "--draw=False"]
    predict.main([*words, "--tta=flip,0.8"])
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found) == len(results) > 0
    for one, other in zip(*(sorted(rows, key=lambda row: row["score"]) for rows in (found, results)), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    with pytest.raises(SystemExit):
        predict.main([*words, "--resume"])
    assert "tta was flip,0.8 and is None" in capsys.readouterr().err


@pytest.fixture
def clip(trained, tmp_path):
    """A clip of 16 frames of 64×64."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    images = sorted((trained[0] / "train").iterdir())
    for path in [*images, *images[:4]]:
        writer.write(cv2.imread(str(path)))
    writer.release()
    return tmp_path / "clip.avi"


def rows_of(out):
    return [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]


def test_a_video_has_a_row_and_a_drawing_of_each_frame(trained, clip, capsys, tmp_path):
    words = ["--checkpoint", str(trained[1]), "--images", str(clip), "--out", str(tmp_path / "out"), "--batch=1"]
    predict.main([*words, "--format=jsonl", "--threshold=0.001"])
    output = capsys.readouterr().out
    assert re.search(r"[\d.]+ frames/s\n16 frames, ", output)
    frames = [frame.pixels for frame in Video(str(clip)).frames()]
    expected = tood_jax.load(trained[1])(frames)
    for number, (row, one) in enumerate(zip(rows_of(tmp_path / "out"), expected, strict=True)):
        assert row["path"] == f"{clip}/{number:06d}"
        np.testing.assert_allclose(row["scores"], one.scores, atol=1e-5)
    drawings = [frame.pixels for frame in Video(str(tmp_path / "out" / "clip.mp4")).frames()]
    assert [drawing.shape for drawing in drawings] == [(448, 448, 3)] * 16
    predict.main(words)  # replaces its own video
    (tmp_path / "out" / "clip.mp4").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        predict.main(words)
    assert "was not written by this program" in capsys.readouterr().err


def test_an_interrupted_video_has_the_rows_so_far(trained, clip, capsys, tmp_path, monkeypatch):
    def frames(video, read=Video.frames):
        for frame in read(video):
            if frame.number == 14:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(Video, "frames", frames)
    words = ["--checkpoint", str(trained[1]), "--images", str(clip), "--out", str(tmp_path / "out")]
    predict.main([*words, "--format=jsonl", "--data.threads=1", "--batch=1"])
    assert "the results have the frames so far" in capsys.readouterr().err
    count = len(rows_of(tmp_path / "out"))
    assert 0 < count < 14
    assert len(list(Video(str(tmp_path / "out" / "clip.mp4")).frames())) == count


def test_eval_equals_the_evaluation_in_training(trained, capsys, tmp_path):
    _, run = trained
    evaluate.main(["--checkpoint", str(run), "--step=latest", "--out", str(tmp_path / "results.json")])
    table = re.search(r"AP  .*\n\s+([\d.]+)", capsys.readouterr().out)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["kind"] == "eval"
    assert float(table[1]) == pytest.approx(100 * last["AP"], abs=0.051)


def test_eval_of_a_yolo_folder_finds_the_same(trained, tmp_path, capsys):
    """The boxes of the set are whole pixels, which YOLO's shares keep."""
    data, run = trained
    hotcoco.COCO(str(data / "annotations/instances_val.json")).to_yolo(str(tmp_path / "yolo/labels/val"))
    (tmp_path / "yolo/labels/val/data.yaml").rename(tmp_path / "yolo/names.yaml")
    shutil.copytree(data / "val", tmp_path / "yolo/images/val")
    names = re.search(r"(?s)names:.*", (tmp_path / "yolo/names.yaml").read_text())[0]
    (tmp_path / "yolo/names.yaml").write_text(f"val: images/val\n{names}")
    rows = {}
    for name, more in (("directory", []), ("yolo", ["--data", str(tmp_path / "yolo")])):
        capsys.readouterr()
        evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / f"{name}.json"), "--report=False", *more])
        found = json.loads((tmp_path / f"{name}.json").read_text())
        rows[name] = [[row["category_id"], *row["bbox"], row["score"]] for row in found]
        rows[f"table {name}"] = re.search(r"(?s)AP .*", capsys.readouterr().out)[0].partition("detections")[0]
    np.testing.assert_allclose(rows["yolo"], rows["directory"], atol=1e-3)
    assert rows["table yolo"] == rows["table directory"]


@pytest.mark.slow
def test_training_takes_a_folder(trained, tmp_path, capsys):
    data, _ = trained
    config = tiny_config(data, tmp_path / "run", batch_size=8, eval_batch_size=8)
    save_config(config, tmp_path / "tiny.json")
    train.main(["--config", str(tmp_path / "tiny.json"), "--data", str(data), "--report=False"])
    output = capsys.readouterr().out
    assert "train: 12 images, " in output
    assert f"(COCO, {data}/annotations/instances_train.json)" in output
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["data"]["val"]["folder"] == str(data)


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
        evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / f"{name}.json"), "--report=False", *more])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["records"] == found["directory"]
    for rows in found.values():
        rows.sort(key=lambda row: (row["image_id"], -row["score"], row["category_id"]))
    assert [row["category_id"] for row in found["tfds"]] == [row["category_id"] for row in found["directory"]]
    for name in ("score", "bbox"):
        values, expected = ([row[name] for row in found[form]] for form in ("tfds", "directory"))
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_a_test_set_without_annotations_is_evaluated_to_a_file_and_not_trained_on(trained, capsys, tmp_path):
    data, run = trained
    tree = json.loads((data / "annotations/instances_val.json").read_text())
    del tree["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(tree))
    words = [f"--data.val.annotations={tmp_path / 'test.json'}"]
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "results.json"), "--report=False", *words])
    output = capsys.readouterr().out
    assert "no list 'annotations', so there is no AP" in output
    assert "AP50" not in output
    assert {one["image_id"] for one in json.loads((tmp_path / "results.json").read_text())}
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", str(run.parent / "tiny.json"), f"--train.workdir={tmp_path / 'run'}", *words])
    assert ended.value.code == 1
    assert "data.val: " in (error := capsys.readouterr().err)
    assert "has no list 'annotations'" in error


def test_a_missing_validation_image_is_found_before_the_first_step(trained, capsys, tmp_path):
    data, run = trained
    shutil.copytree(data / "val", tmp_path / "val")
    next((tmp_path / "val").iterdir()).unlink()
    words = [f"--train.workdir={tmp_path / 'run'}", f"--data.val.images={tmp_path / 'val'}"]
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", str(run.parent / "tiny.json"), *words])
    assert ended.value.code == 1
    assert "1 of the 5 images" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_predict_draws_and_writes(trained, capsys, tmp_path):
    data, run = trained
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    images = [str(data / "val"), str(data / "train" / "00000[1-3].jpg"), str(broken)]
    predict.main(["--checkpoint", str(run), "--images", *images, "--out", str(tmp_path / "out"), "--threshold=0.01"])
    captured = capsys.readouterr()
    assert "8 images" in captured.out
    assert "broken.jpg" in captured.err
    drawn = sorted(p for p in (tmp_path / "out").iterdir() if p.suffix == ".jpg")
    assert len(drawn) == 8
    assert cv2.imread(str(drawn[0])).shape == (448, 448, 3)  # small pictures are enlarged by a whole factor
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["category"] for row in rows} <= {"disc", "box", "triangle", "star"}
    assert all(np.isfinite(row["bbox"]).all() for row in rows)


def test_predict_does_not_depend_on_the_batch(trained, tmp_path):
    """The detections of eval.py (in a batch) and of predict.py (alone) are the same."""
    data, run = trained
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "batch.json"), "--report=False"])
    predict.main(["--checkpoint", str(run), "--images", str(data / "val"), "--out", str(tmp_path / "alone")])
    in_batch = [(one["category_id"], one["score"]) for one in json.loads((tmp_path / "batch.json").read_text())]
    alone = [
        (one["category_id"], one["score"]) for one in json.loads((tmp_path / "alone" / "detections.json").read_text())
    ]
    assert len(in_batch) == len(alone)
    np.testing.assert_allclose(sorted(s for _, s in in_batch), sorted(s for _, s in alone), atol=1e-5)


def test_a_checkpoint_with_old_names_of_fields_resumes(trained, capsys, tmp_path):
    """The renamed fields are not reported as changed; eval.py prints one note on them."""
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    for file in run.glob("checkpoints/*/about/about.json"):
        record = json.loads(file.read_bytes())
        config = record["about"]["config"]
        config["learning"] = config.pop("assigner")
        config["learning"]["assigner"] = config["learning"].pop("kind")
        record.pop("crc32")
        file.write_text(json.dumps({**record, "crc32": crc_of_json(record)}))
    words = ["--config", str(run.parent / "tiny.json"), f"--train.workdir={run}", "--detect.score_threshold=0.001"]
    shutil.copy(trained[1].parent / "tiny.json", run.parent)
    train.main(words)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "The config differs" in line]
    assert "in train.workdir: " in line
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "results.json")])
    assert capsys.readouterr().err.count("learning.assigner is now assigner.kind") == 1


@pytest.mark.parametrize(
    ("program", "words", "status", "message"),
    [
        (evaluate, [], 1, "name a checkpoint: --checkpoint runs/NAME"),
        (evaluate, ["--checkpoint", "/nowhere"], 1, "no such folder: /nowhere"),
        (evaluate, ["--checkpoint", "RUN", "--step=newest"], 1, "best, latest or the number"),
        (evaluate, ["--checkpoint", "RUN", "--data.vall.images=x"], 2, "--data.val.images"),
        (evaluate, ["--checkpoint", "RUN", "--data.val.annotations=x.json"], 1, "x.json"),
        (predict, ["--checkpoint", "RUN"], 1, "name images"),
        (predict, ["--checkpoint", "RUN", "--images", "/nowhere/*.jpg"], 1, "no glob that matches"),
        (train, [], 2, "configs/NAME.py"),
        (train, ["--config", "configs/tood_r50_fpn_1x_coco.py"], 1, "data/coco/annotations/instances_train2017.json"),
    ],
)
def test_errors_are_one_sentence(trained, capsys, monkeypatch, tmp_path, program, words, status, message):
    run = str(trained[1])
    if program is train:
        words = [*words, f"--train.workdir={tmp_path}"] if words else words
    with pytest.raises(SystemExit) as end:
        program.main([run if word == "RUN" else word for word in words])
    output = capsys.readouterr().err
    assert end.value.code == status
    assert message in output
    assert len(output.strip().splitlines()) == 1


def test_help_explains_fields(capsys):
    for program in (train, evaluate, predict):
        with pytest.raises(SystemExit) as end:
            program.main(["--help"])
        assert end.value.code in (0, None)
        assert "--" in capsys.readouterr().out


def test_a_batch_that_devices_do_not_divide(trained, capsys, tmp_path):
    config = tiny_config(trained[0], tmp_path / "run", batch_size=6)
    save_config(config, tmp_path / "six.json")
    with pytest.raises(SystemExit) as end:
        train.main(["--config", str(tmp_path / "six.json")])
    assert end.value.code == 1
    assert "6 images can't be split evenly over 8 devices" in capsys.readouterr().err


def test_the_detector_in_python_finds_what_predict_finds(trained, tmp_path):
    data, run = trained
    file = sorted((data / "val").glob("*.jpg"))[0]
    predict.main(["--checkpoint", str(run), "--images", str(file), "--out", str(tmp_path), "--draw", "False"])
    rows = json.loads((tmp_path / "detections.json").read_text())
    detector = tood_jax.load(run)
    for image in (str(file), cv2.imread(str(file))[:, :, ::-1].copy()):
        found = detector(image)
        assert len(rows) == len(found.scores) > 0
        np.testing.assert_allclose(found.scores, [row["score"] for row in rows], atol=1e-5)
        assert [detector.class_names[label] for label in found.labels] == [row["category"] for row in rows]
    with pytest.raises(DataError, match=r"uint8 RGB values \[height, width, 3\], not float64 \[4, 4\]"):
        detector(np.zeros((4, 4)))


def test_the_python_example_of_the_readme_runs(trained, tmp_path, monkeypatch, capsys):
    data, run = trained
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    (tmp_path / "street.jpg").symlink_to(sorted((data / "val").glob("*.jpg"))[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert any(name in capsys.readouterr().out for name in ("disc", "box", "triangle", "star"))


def test_a_run_ends_with_a_report_and_keeps_its_evaluations(trained):
    _, run = trained
    evaluations = [row for row in map(json.loads, (run / "metrics.jsonl").open()) if row["kind"] == "eval"]
    last = evaluations[-1]["step"]
    summary = json.loads((run / "eval" / str(last) / "metrics.json").read_text())
    assert summary["metrics"]["AP"] == evaluations[-1]["AP"]
    assert (run / "eval" / str(last) / "report.html").stat().st_size > 50_000
    rows = list(csv.DictReader((run / "results.csv").open()))
    assert [int(row["step"]) for row in rows] == [row["step"] for row in evaluations]
    assert [float(row["AP50"]) for row in rows] == [row["AP50"] for row in evaluations]
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert cv2.imread(str(run / "results.png")) is not None
    events = b"".join(file.read_bytes() for file in (run / "tensorboard").iterdir())
    assert b"eval/class_ap/000_disc" in events


def test_eval_writes_a_report_and_prints_the_uncertainty_of_ap(trained, capsys, tmp_path):
    _, run = trained
    words = [
        "--checkpoint",
        str(run),
        "--out",
        str(tmp_path / "results.json"),
        "--report_out",
        str(tmp_path / "report"),
    ]
    evaluate.main(words)
    output = capsys.readouterr().out
    assert re.search(r"95 % intervals: AP \d+\.\d \[\d+\.\d, \d+\.\d\], AP50", output)
    assert f"Report: {tmp_path}/report/report.html" in output
    (tmp_path / "report" / "pr.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        evaluate.main(words)
    assert "pr.png was changed or not written by a report" in capsys.readouterr().err


def test_two_runs_are_compared(trained, capsys, tmp_path):
    data, run = trained
    annotations = f"--annotations={data / 'annotations/instances_val.json'}"
    evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "b.json"), "--report=False"])
    results = json.loads((tmp_path / "b.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps([]))
    compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), annotations])
    output = capsys.readouterr().out
    assert re.search(r"^AP +0\.0 ", output, re.MULTILINE)
    for words, message in (
        ([{**results[0], "image_id": 99}], "detection 0 is of image 99, which the annotation file does not have"),
        ([{**results[0], "category_id": []}], r"detection 0 is of category \[\], which"),
        ([{**results[0], "bbox": [1, 2]}], "detection 0 has no 'bbox' of four numbers"),
        ([{**results[0], "score": True}], "detection 0 has no number 'score'"),
        ({}, "is no list of detections"),
    ):
        (tmp_path / "a.json").write_text(json.dumps(words))
        with pytest.raises(SystemExit):
            compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), annotations])
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "b.json"), str(tmp_path / "b.json")])
    assert "--annotations FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "metrics", "expected"),
    [
        (0.5, {"thresholds": [0.2, 0.4]}, [0.5, 0.5]),
        (None, {"thresholds": [0.2, 0.4]}, [0.2, 0.4]),
        (None, {"thresholds": [None, 0.4]}, [0.3, 0.4]),
        (None, {"thresholds": [7, "x"]}, [0.3, 0.3]),
        (None, {"thresholds": [0.2]}, [0.3, 0.3]),
        (None, None, [0.3, 0.3]),
    ],
)
def test_predict_draws_above_the_best_threshold_of_each_class(given, metrics, expected):
    np.testing.assert_array_equal(class_thresholds(given, {"metrics": metrics}, 2), expected)


def test_predict_names_the_thresholds_of_the_checkpoint(trained, capsys, tmp_path):
    data, run = trained
    stored = open_checkpoint(run, "latest").about["metrics"]["thresholds"]
    assert len(stored) == 4
    words = ["--checkpoint", str(run), "--step=latest", "--images", str(data / "val"), "--out", str(tmp_path / "drawn")]
    predict.main([*words, "--draw", "False"])
    limits = [0.3 if one is None else one for one in stored]
    shown = f"≥ the best threshold of their class ({min(limits):.2f} to {max(limits):.2f})"
    assert shown in capsys.readouterr().out


def test_a_run_with_other_arrays_is_refused_by_the_names_of_the_fields(trained, capsys):
    _, run = trained
    words = ["--optimizer.kind=adamw", "--neck.channels=32"]
    config = (run / "config.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        train.main(["--config", str(run.parent / "tiny.json"), "--detect.score_threshold=0.001", *words])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "can't go on with this config (neck.channels was 16 and is 32, optimizer.kind was sgd and is adamw)" in error
    assert len(error.strip().splitlines()) == 1
    assert (run / "config.json").read_bytes() == config  # still the config of the run


def test_python_programs_train_and_evaluate(trained):
    """A finished run goes on where it ended, and its evaluation is that of `tood eval`."""
    data, run = trained
    outcome = tood_jax.train(tood_jax.load_config(run.parent / "tiny.json"))
    newest = open_checkpoint(run, "latest")
    assert (outcome.step, outcome.stopped) == (newest.step, Reason.NONE)
    val = SplitConfig(str(data / "val"), str(data / "annotations/instances_val.json"))
    evaluation = tood_jax.evaluate(run, val, step="latest")
    assert pytest.approx(newest.about["metrics"]["AP"], abs=1e-9) == evaluation.metrics.AP
    assert len(evaluation.detections) == len(list((data / "val").iterdir()))


def test_the_example_of_a_training_loop_learns(trained, capsys):
    _, run = trained
    code = (ROOT / "examples" / "custom_training.py").read_text(encoding="utf-8")
    options = 'CONFIG, STEPS, ATSS_STEPS = "demo", 300, 100\n'
    assert options in code
    short = code.replace(options, f"CONFIG, STEPS, ATSS_STEPS = {str(run.parent / 'tiny.json')!r}, 40, 20\n")
    exec(short.replace("step % 50", "step % 13"), {})
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def interrupt(monkeypatch, after):
    """Let predict.py's process be interrupted in the middle of its row of this number."""
    append, calls = Part.append, []

    def torn(part, row):
        calls.append(row)
        if len(calls) == after:
            os.write(part._descriptor, encode_row(row)[:9])  # as a kill leaves it
            raise KeyboardInterrupt
        append(part, row)

    monkeypatch.setattr(Part, "append", torn)


def test_an_interrupted_prediction_continues_and_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch, capsys):
    """Batches of 1 make chunks of 16: the job of 24 images is interrupted in its second chunk."""
    data, run = trained
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    paths = [*sorted((data / "train").iterdir()), tmp_path / "broken.jpg", *sorted((data / "val").iterdir())]
    (tmp_path / "list.txt").write_text("\n".join(map(str, [*paths, *paths[:6]])))
    words = ["--checkpoint", str(run), "--images", f"@{tmp_path / 'list.txt'}", "--batch=1"]
    words += ["--format", "jsonl", "json", "csv", "yolo", "--threshold=0.01"]
    predict.main([*words, "--out", str(tmp_path / "whole"), "--resume"])  # there is nothing to resume
    with monkeypatch.context() as patched:
        interrupt(patched, after=20)
        with pytest.raises(SystemExit) as end:
            predict.main([*words, "--out", str(tmp_path / "out")])
    assert end.value.code == 130
    assert "the same command with --resume continues" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([*words, "--out", str(tmp_path / "out"), "--resume", "--detect.nms_iou=0.4"])
    assert "can't be continued (weights and config was" in capsys.readouterr().err
    predict.main([*words, "--out", str(tmp_path / "out"), "--resume"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == (tmp_path / "list.txt").read_text().split()
    assert [row["path"] for row in rows if "error" in row] == [str(tmp_path / "broken.jpg")]
    capsys.readouterr()
    predict.main([*words, "--out", str(tmp_path / "out"), "--resume"])
    assert "is complete" in capsys.readouterr().out


def contents(folder):
    """All files of an output folder by name, without the records of what was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "job.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != MARKER}


def test_images_that_changed_since_the_interruption_are_refused(trained, tmp_path, monkeypatch, capsys):
    data, run = trained
    shutil.copytree(data / "train", tmp_path / "images")
    words = ["--checkpoint", str(run), "--images", str(tmp_path / "images"), "--batch=1", "--draw=False"]
    for name in "abcdef":
        shutil.copy(next((data / "val").iterdir()), tmp_path / "images" / f"{name}.jpg")
    with monkeypatch.context() as patched:
        interrupt(patched, after=17)
        with pytest.raises(SystemExit):
            predict.main([*words, "--out", str(tmp_path / "out")])
    (tmp_path / "images" / "b.jpg").rename(tmp_path / "images" / "bb.jpg")
    with pytest.raises(SystemExit):
        predict.main([*words, "--out", str(tmp_path / "out"), "--resume"])
    assert re.search(r"\(image 14 was .*/b\.jpg and is .*/bb\.jpg\)", capsys.readouterr().err)
