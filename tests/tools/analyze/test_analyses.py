"""tood analyze on a real run: what it prints and writes, and its errors."""

import csv
import json
import re

import cv2
import numpy as np
import pytest

from tood_jax.cli import evaluate
from tood_jax.evaluation.missed import CAUSES
from tood_jax.tools.analyze import alignment, main, maps, missed, targets


@pytest.mark.slow
def test_alignment_counts_the_boxes_of_the_evaluation(trained, tmp_path, capsys):
    alignment.main(["--checkpoint", str(trained.folder), "--json", str(tmp_path / "a.json")])
    measured = json.loads((tmp_path / "a.json").read_text())
    text = capsys.readouterr().out
    assert "0.452" in text
    assert "30,734" in text
    assert measured["images"] == 5
    evaluate.main(["--checkpoint", str(trained.folder), "--out", str(tmp_path / "results.json")])
    detections = len(json.loads((tmp_path / "results.json").read_text()))
    assert measured["correct"] + measured["redundant"] + measured["error"] <= detections


@pytest.mark.slow
def test_missed_objects_and_settings(trained, tmp_path, capsys):
    files = {name: tmp_path / name for name in ("m.csv", "m.json", "pictures")}
    words = [f"--csv={files['m.csv']}", f"--json={files['m.json']}", f"--pictures={files['pictures']}"]
    missed.main(["--checkpoint", str(trained.folder), *words, "--max_pictures=2"])
    rows = list(csv.DictReader(files["m.csv"].open()))
    content = json.loads(files["m.json"].read_text())
    assert {row["cause"] for row in rows} <= set(CAUSES)
    assert content["causes"] == {name: sum(row["cause"] == name for row in rows) for name in CAUSES}
    detect = trained.config.detect
    present = [
        row for row in content["settings"]
        if (row["score_threshold"], row["nms_iou"]) == (detect.score_threshold, detect.nms_iou)
        and row["candidates_per_level"] == detect.candidates_per_level
    ]  # fmt: skip
    assert [row["found"] for row in present] == [content["causes"]["found"]]
    assert len(content["settings"]) >= 288
    lost = len(rows) - content["causes"]["found"]
    assert len(list(files["pictures"].glob("*.png"))) == min(2, lost)
    assert "best: " in capsys.readouterr().out

    evaluate.main(
        [
            "--checkpoint",
            str(trained.folder),
            f"--out={tmp_path / 'results.json'}",
            f"--report_out={tmp_path / 'report'}",
            "--missed=True",
        ]
    )
    page = (tmp_path / "report" / "report.html").read_text()
    section = page[page.index('<section id="missed-objects">') :]
    shown = re.findall(r"<tr><td>([a-zA-Z_ -]+)</td><td[^>]*>(\d+)</td>", section)
    assert {name: int(count) for name, count in shown if name in CAUSES} == content["causes"]
    assert ("present", str(content["causes"]["found"])) in shown
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", str(trained.folder), "--missed=True", "--report=False"])
    assert "--missed is a part of the report" in capsys.readouterr().err


@pytest.mark.slow
def test_maps_of_an_annotated_and_of_another_image(trained, tmp_path, capsys):
    image = sorted((trained.data / "val").iterdir())[0]
    maps.main(["--checkpoint", str(trained.folder), f"--image={image}", f"--out={tmp_path / 'one'}"])
    assert "Without annotations" not in capsys.readouterr().out
    assert (tmp_path / "one.svg").stat().st_size > 10_000
    other = tmp_path / image.name
    other.write_bytes(image.read_bytes())
    maps.main(
        ["--checkpoint", str(trained.folder), f"--image={other}", f"--out={tmp_path / 'one'}"]
    )  # replaces its own
    assert "is not an image of" in capsys.readouterr().out
    (tmp_path / "two.png").write_bytes(np.arange(9).tobytes())
    with pytest.raises(SystemExit):
        maps.main(["--checkpoint", str(trained.folder), f"--image={other}", f"--out={tmp_path / 'two'}"])
    assert "exists and was not written by this program" in capsys.readouterr().err


@pytest.mark.slow
def test_training_draws_its_targets_at_the_start_of_each_phase(trained):
    drawn = sorted(file.name for file in (trained.folder / "pictures").glob("*targets.png"))
    assert drawn == ["0000000_targets.png", "0000001_targets.png"]
    assert "can't be drawn" not in (trained.folder / "train.log").read_text()


@pytest.mark.slow
def test_the_table_counts_what_the_log_counted(trained, tmp_path, capsys):
    """The weights of a step and the batch of the next give the positives of that update."""
    step = 8
    targets.main(["--checkpoint", str(trained.folder), f"--step={step}", "--out", str(tmp_path / "t.png")])
    text = capsys.readouterr().out
    row, batch = trained.steps[step]
    objects, positives, without = map(int, re.search(r"(\d+) objects, (\d+) positives, (\d+) obj", text).groups())
    assert (objects, positives) == (row["objects"], row["positives"])
    assert objects == batch.gt_mask.sum()
    assert text.count("no positive") == without
    assert cv2.imread(str(tmp_path / "t.png")) is not None


def test_an_analysis_that_does_not_exist(capsys):
    with pytest.raises(SystemExit):
        main.main(["mised"])
    assert capsys.readouterr().err == "tood analyze: there is no analysis mised. Did you mean missed?\n"
    main.main(["--help"])
    assert all(f"  {name} " in capsys.readouterr().out for name in ["alignment"])
