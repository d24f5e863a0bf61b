"""The run's log: readable by strict parsers, and after a resume as if never interrupted."""

import io
import json
import os
import sys
import time
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.run_log import appender
from tood_jax.run_log.log import RunLog
from tood_jax.run_log.rates import format_eta, images_per_second, memory_report
from tood_jax.run_log.strict_json import json_safe


def read_strictly(file: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def events_of(folder: Path) -> list:
    """TensorBoard events: records of 8 bytes length, 4 of its checksum, the event, 4 of its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def without_time(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_a_text_goes_to_the_terminal_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run") as log:
        log.info("hello\nthere — ok")
    assert capsys.readouterr().out == "hello\nthere — ok\n"
    lines = (tmp_path / "run" / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line[21:] for line in lines] == ["hello", "there — ok"]
    assert lines[0][4] == lines[0][7] == "-"


def test_metrics_are_strict_json_and_tensorboard(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.metrics(5, {"loss": jnp.float32(0.5), "grad": float("nan"), "n": np.int64(3), "phase": "atss"})
        log.metrics(6, {"AP": np.float32(0.25), "inf": -np.inf, "per_class": {"cat": 0.5}, "sizes": [1, 2]}, "eval")
    first, second = read_strictly(tmp_path / "metrics.jsonl")
    assert {"step": 5, "kind": "train", "loss": 0.5, "grad": "nan", "n": 3, "phase": "atss"}.items() <= first.items()
    assert second["inf"] == "-inf"
    assert second["per_class"] == {"cat": 0.5}
    assert first["time"].endswith("+00:00")
    scalars = {v.tag: (e.step, v.simple_value) for e in events_of(tmp_path) for v in e.summary.value}
    assert scalars["train/loss"] == (5, 0.5)
    assert np.isnan(scalars["train/grad"][1])
    assert scalars["eval/per_class/cat"] == (6, 0.5)
    assert "train/phase" not in scalars


def test_tensorboard_is_not_touched_without_numbers(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.info("x")
    assert not (tmp_path / "tensorboard").exists()


def test_picture(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:, :15] = (255, 10, 0)  # red on the left
    with RunLog(tmp_path) as log:
        png = log.picture(12, "eval/first", picture)
        jpeg = log.picture(12, "second.jpg", picture)
        with pytest.raises(ValueError, match=r"uint8 \[h, w, 3\], not float32 \[4, 4, 3\]"):
            log.picture(1, "x", np.zeros((4, 4, 3), np.float32))
    assert png == tmp_path / "pictures" / "0000012_eval_first.png"
    assert jpeg is not None
    assert jpeg.suffix == ".jpg"
    np.testing.assert_array_equal(cv2.imread(str(png))[..., ::-1], picture)
    values = [v for e in events_of(tmp_path) for v in e.summary.value]
    assert [v.tag for v in values] == ["eval/first", "second"]
    image = values[0].image
    assert (image.height, image.width, image.colorspace) == (20, 30, 3)
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], picture)


def test_resume_makes_the_file_as_if_unbroken(tmp_path: Path) -> None:
    with RunLog(tmp_path / "unbroken") as log:
        for step in range(10, 60, 10):
            log.metrics(step, {"loss": 1 / step})
    with RunLog(tmp_path / "broken") as log:
        for step in range(10, 50, 10):
            log.metrics(step, {"loss": 1 / step})
    file = tmp_path / "broken" / "metrics.jsonl"
    with open(file, "a") as out:
        out.write('{"step": 50, "kind": "tr')  # kill −9 in the middle of a line
    with RunLog(tmp_path / "broken") as log:
        log.resume_from(20)
        for step in range(30, 60, 10):
            log.metrics(step, {"loss": 1 / step})
    rows = read_strictly(file)
    assert without_time(rows) == without_time(read_strictly(tmp_path / "unbroken" / "metrics.jsonl"))
    discarded = (tmp_path / "broken" / "metrics.jsonl.discarded").read_text().splitlines()
    assert discarded[0] == '{"step": 50, "kind": "tr'  # at opening; then those after step 20
    assert [json.loads(line)["step"] for line in discarded[1:]] == [30, 40]
    assert any(event.session_log.status == 1 and event.step == 21 for event in events_of(tmp_path / "broken"))


def visible_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard shows: a session's start drops what was read before of its step and later ones."""
    shown: list[tuple[int, str, float]] = []
    for event in events_of(folder):
        if event.session_log.status == 1:
            shown = [one for one in shown if one[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return sorted(shown)


@pytest.mark.parametrize("clock", [0.0, -1e6])
def test_an_evaluation_before_a_kill_is_not_shown_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: float
) -> None:
    """Killed between an evaluation and the save of its metrics; the clock may have gone back (files sort by name)."""
    for step in (10, 20):
        with RunLog(tmp_path / "unbroken") as log:
            log.metrics(step, {"loss": 1.0, "speed": {"images": 2}})
            log.metrics(step, {"AP": 0.5}, kind="eval")
    with RunLog(tmp_path / "broken") as log:
        for step in (10, 20):
            log.metrics(step, {"loss": 1.0, "speed": {"images": 2}})
            log.metrics(step, {"AP": 0.5}, kind="eval")
    genuine = time.time
    monkeypatch.setattr(time, "time", lambda: genuine() + clock)
    for _ in range(2):  # and killed again
        with RunLog(tmp_path / "broken") as log:
            log.resume_from(20, evaluated=False)
            log.metrics(20, {"AP": 0.5}, kind="eval")
    assert visible_scalars(tmp_path / "broken") == visible_scalars(tmp_path / "unbroken")
    broken, unbroken = (read_strictly(tmp_path / name / "metrics.jsonl") for name in ("broken", "unbroken"))
    assert without_time(broken) == without_time(unbroken)


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}')
    with RunLog(tmp_path) as log:
        log.metrics(3, {"loss": 1.0})
    assert [row["step"] for row in read_strictly(file)] == [1, 2, 3]
    assert not (tmp_path / "metrics.jsonl.discarded").exists()


def test_resuming_at_the_end_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path) as log:
        log.resume_from(0)  # no file yet
        log.metrics(1, {"loss": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        log.resume_from(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert os.listdir(tmp_path).count("metrics.jsonl.discarded") == 0
    assert capsys.readouterr().out == ""


def test_progress_without_a_tty_is_a_line_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, log_every_steps=10) as log:
        for step in range(1, 26):
            log.progress(step, 25, {"loss": 1 / 3, "eta": "00:01"})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"step {step}/25  loss 0.3333  eta 00:01" for step in (10, 20, 25)]
    assert len((tmp_path / "train.log").read_text().splitlines()) == 3


def test_processes_other_than_the_primary_log_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "run", is_active=False) as log:
        log.info("x")
        log.metrics(1, {"a": 1})
        log.progress(1, 1, {})
        log.resume_from(1)
        assert log.picture(1, "x", np.zeros((2, 2, 3), np.uint8)) is None
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_json_safe() -> None:
    value = {1: (np.float32(0.5), jnp.arange(2)), "path": Path("a"), "b": True, "none": None, "nan": np.nan}
    assert json_safe(value) == {"1": [0.5, [0, 1]], "path": "a", "b": True, "none": None, "nan": "nan"}
    with pytest.raises(TypeError, match="a object can't be written as JSON"):
        json_safe({"x": object()})


def test_rates_and_times() -> None:
    assert images_per_second(32, 4.0) == 8.0
    assert images_per_second(32, 0.0) == 0.0
    assert format_eta(100, 1.5) == "00:02:30"
    assert format_eta(100_000, 2.0) == "2d 07:33:20"
    assert format_eta(0, 0.0) == "00:00:00"
    assert format_eta(5, 0.0) == format_eta(5, float("nan")) == "?"


def test_memory_report() -> None:
    (name, size), *rest = memory_report().items()
    assert not rest
    assert name in ("process_gb", "device_peak_gb")
    assert 0.01 < size < 1000


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is written fails for a while; then the files are as if nothing had been, but for a picture."""
    picture = np.zeros((4, 4, 3), np.uint8)

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with RunLog(tmp_path, log_every_steps=1) as log:
        log.metrics(1, {"loss": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(appender.os, "write", full)
            patch.setattr(Path, "write_bytes", full)
            log.metrics(2, {"loss": 1.0})
            log.metrics(3, {"loss": 1.0})
            log.progress(3, 9, {"loss": 1.0})
            assert log.picture(3, "lost", picture) is None
        log.metrics(4, {"loss": 1.0})
        assert log.picture(4, "kept", picture) is not None
        log.info("room again")
    assert [row["step"] for row in read_strictly(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    scalars = [e.step for e in events_of(tmp_path) for v in e.summary.value if v.tag == "train/loss"]
    assert scalars == [1, 2, 3, 4]
    said = (tmp_path / "train.log").read_text()
    for name in ("metrics.jsonl", "events.out", "train.log", "0000003_lost.png"):
        assert sum(name in line and "can't be written" in line for line in said.splitlines()) == 1, name
    assert "step 3/9" in said
    assert capsys.readouterr().out.count("No space left on device") == 4


def test_an_evaluation_that_never_reached_a_checkpoint_is_made_anew(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in (1, 2):
            log.metrics(step, {"loss": 1.0})
            log.metrics(step, {"AP": 0.5}, kind="eval")
        log.resume_from(2, evaluated=True)
        assert len(read_strictly(tmp_path / "metrics.jsonl")) == 4
        log.resume_from(2, evaluated=False)
        kinds = [(row["step"], row["kind"]) for row in read_strictly(tmp_path / "metrics.jsonl")]
    assert kinds == [(1, "train"), (1, "eval"), (2, "train")]


HOSTILE = "\x1b]0;title\x07\u202egpj.exe \udcff\x9b2J ≥ …\x0b\x1c\u2028end"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_foreign_text_reaches_no_terminal_and_no_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with RunLog(tmp_path) as log:
        log.info(f"first\n{HOSTILE}")
        log.progress(1, 1, {"name": HOSTILE})
        log.metrics(1, {HOSTILE: 1.0, "x" * 5000: 2.0, "text": HOSTILE})
        log.picture(1, "a picture", np.zeros((4, 4, 3), np.uint8))
    told = raw.getvalue().decode(encoding)
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(told.splitlines()) == 3
    assert all(line.isprintable() for line in [*lines, *told.splitlines()])
    tags = [v.tag for e in events_of(tmp_path) for v in e.summary.value]
    assert len(tags) == 3
    assert all(tag.isprintable() and len(tag) <= 300 for tag in tags)
    assert read_strictly(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("state", ["missing", "closed", "without a reader"])
def test_a_run_goes_on_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w") if state == "without a reader" else None
    if state == "closed":
        with open(tmp_path / "closed", "w") as stream:
            pass
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream if state != "closed" else None)
    with RunLog(tmp_path / "run") as log:
        for step in range(3):
            log.info(f"line {step}")
            log.progress(step, 2, {"loss": 1.0})
    monkeypatch.undo()
    text = (tmp_path / "run" / "train.log").read_text()
    assert all(f"line {step}" in text for step in range(3))
    assert "step 2/2" in text


def test_a_picture_that_no_format_holds_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path) as log:
        assert log.picture(1, "a.jpg", np.zeros((1, 70_000, 3), np.uint8)) is None
    assert "70000×1 pixels can't be written as .jpg" in capsys.readouterr().out
