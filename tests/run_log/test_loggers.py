"""Loggers of a run: a failing or waiting one never stops it; the real libraries get all numbers in one run, offline."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from tood_jax.config import ConfigError, TrainConfig
from tood_jax.run_log import background_logger, loggers
from tood_jax.run_log.log import RunLog
from tood_jax.run_log.logger import LoggerStart, clean_tag
from tood_jax.run_log.wandb_logger import has_login

ROOT = Path(__file__).resolve().parents[2]


class FakeLogger:
    """Keeps what it gets; raises at the first step of `fails_at`, and waits at `waits_at` for `released`."""

    def __init__(self, start, fails_at=None, waits_at=None):
        self.start, self.fails_at, self.waits_at = start, fails_at, waits_at
        self.steps, self.is_closed, self.released = [], False, threading.Event()

    def scalars(self, step, values):
        if step == self.fails_at:
            raise RuntimeError("quota exceeded\x1b[31m")
        if step == self.waits_at:
            self.released.wait()
        self.steps.append((step, values))

    def picture(self, step, tag, picture):
        self.steps.append((step, tag))

    def close(self):
        self.is_closed = True


@pytest.fixture(params=[False, True], ids=["at once", "in background"])
def fake(request, monkeypatch):
    """Adds a logger `fake`; returns (its options, all that were opened)."""
    options, opened = {}, []
    module = types.ModuleType("fake_logger_module")

    def open_logger(start: LoggerStart):
        opened.append(FakeLogger(start, **options))
        return opened[-1]

    module.open_logger = open_logger
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(loggers.LOGGERS, "fake", loggers.LoggerKind(module.__name__, "json", request.param))
    return options, opened


def open_log(folder):
    return RunLog(folder, 1, True, ("tensorboard", "fake"), "mine", {"train": {"seed": 3}})


def test_the_table_is_that_of_the_schema():
    names = get_args(get_args(get_type_hints(TrainConfig)["loggers"])[0])
    assert {*names} == loggers.LOGGERS.keys()


def test_a_logger_gets_all_numbers_and_the_run_id_of_the_first_start(tmp_path, fake):
    _, opened = fake
    with open_log(tmp_path) as log:
        log.metrics(1, {"loss": 0.5, "name": "x"})
        log.picture(1, "drawn", np.zeros((4, 4, 3), np.uint8))
    (first,) = opened
    assert first.start.run_id is None
    assert (first.start.name, first.start.config) == ("mine", {"train": {"seed": 3}})
    first.start.keep_run_id("abc")
    with open_log(tmp_path) as log:
        log.resume_from(1)
        log.metrics(2, {"loss": 0.25})
    assert first.steps == [(1, {"train/loss": 0.5}), (1, "drawn")]
    assert opened[1].start.run_id == "abc"
    assert opened[1].start.purge_step == 2
    assert opened[1].steps == [(2, {"train/loss": 0.25})]
    assert first.is_closed
    assert opened[1].is_closed


def test_a_damaged_run_id_begins_a_new_run(tmp_path, fake):
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers" / "fake.json").write_text('{"run_id": 7')
    with open_log(tmp_path) as log:
        log.metrics(1, {"loss": 0.5})
    assert fake[1][0].start.run_id is None


def test_a_failing_logger_is_one_warning(tmp_path, fake, capsys):
    options, opened = fake
    options["fails_at"] = 2
    with open_log(tmp_path) as log:
        for step in range(1, 6):
            log.metrics(step, {"loss": 0.5})
    assert [step for step, _ in opened[0].steps] == [1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    output = capsys.readouterr().out
    assert output.count("warning") == 1
    assert "the logger fake failed (quota exceeded\\x1b[31m) and gets no more numbers until the next start" in output


def test_a_logger_that_does_not_open_is_one_warning(tmp_path, fake, capsys):
    fake[0]["unknown"] = 1  # a TypeError
    with open_log(tmp_path) as log:
        for step in range(1, 4):
            log.metrics(step, {"loss": 0.5})
    assert capsys.readouterr().out.count("warning: the logger fake failed") == 1


@pytest.mark.parametrize("fake", [True], indirect=True, ids=["in background"])
def test_a_logger_that_waits_does_not_let_the_run_wait(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr(background_logger, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(background_logger, "MAX_WAITING", 5)
    options, opened = fake
    options["waits_at"] = 1
    begin = time.monotonic()
    with open_log(tmp_path) as log:
        for step in range(1, 50):
            log.metrics(step, {"loss": 0.5})
    assert time.monotonic() - begin < 5
    assert "it does not take numbers: 5 calls wait" in capsys.readouterr().out
    with open_log(tmp_path) as log:
        log.metrics(1, {"loss": 0.5})
    assert "it has not taken all numbers after 0.1 s" in capsys.readouterr().out
    for one in opened:
        one.released.set()


def test_loggers_in_the_background_close_at_the_same_time(tmp_path, monkeypatch):
    module = types.ModuleType("slow_logger_module")

    class Slow(FakeLogger):
        def close(self):
            time.sleep(0.3)

    module.open_logger = Slow
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = [f"slow{number}" for number in range(5)]
    for name in names:
        monkeypatch.setitem(loggers.LOGGERS, name, loggers.LoggerKind(module.__name__, "json"))
    with RunLog(tmp_path, 1, True, names) as log:
        log.metrics(1, {"loss": 0.5})
        begin = time.monotonic()
    assert 0.25 < time.monotonic() - begin < 1.2
    assert not (tmp_path / "train.log").exists()  # no warning


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_missing_package_is_an_error_with_its_command(monkeypatch, tmp_path, is_folder):
    """W&B itself makes folders named wandb, which Python takes for packages."""
    name = "absent_package_of_a_logger"
    if is_folder:
        (tmp_path / name).mkdir()
        monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(loggers.LOGGERS, "wandb", loggers.LOGGERS["wandb"]._replace(package=name))
    with pytest.raises(ConfigError, match=rf"wandb needs the package {name}: pip install 'tood_jax\[wandb\]'"):
        loggers.check_loggers(["tensorboard", "wandb"])


def test_tags_have_letters_that_all_loggers_allow():
    assert clean_tag("eval/class_ap/000_Größe (1)") == "eval/class_ap/000_Gr__e__1_"
    assert len(clean_tag("x" * 1000)) == 250


WRITE = """
import sys
import numpy as np
from tood_jax.run_log.log import RunLog

_, logger, folder, first, last = sys.argv
first, last = int(first), int(last)
with RunLog(folder, 1, True, (logger,), "mine", {"train": {"seed": 3, "loggers": ["x"]}, "name": "mine"}) as log:
    log.resume_from(first - 1)
    for step in range(first, last + 1):
        log.metrics(step, {"loss": 1 / step, "broken": float("nan")})
    log.metrics(last, {"AP": 0.5, "class/Größe (1)": 0.25}, "eval")
    log.picture(last, "drawn", np.full((8, 8, 3), 200, np.uint8))
"""

READ = {
    "mlflow": """
from mlflow.tracking import MlflowClient

client = MlflowClient()
(experiment,) = [one for one in client.search_experiments() if one.name == "tood_jax"]
(run,) = client.search_runs([experiment.experiment_id])
found = {tag: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, tag)] for tag in TAGS}
found["parameter"] = run.data.params["train.seed"]
found["pictures"] = len(client.list_artifacts(run.info.run_id, "pictures"))
found["state"] = run.info.status
""",
    "wandb": """
import json, sys
from pathlib import Path
from wandb.proto import wandb_internal_pb2


def records(content):
    # LevelDB's log format: after 7 bytes, blocks of 32 KiB with parts of records (checksum, length, kind, data).
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, last
            yield whole
            whole = b""


files = sorted(Path(sys.argv[1], "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
found = {tag: [] for tag in TAGS}
found["pictures"], ids = 0, set()
for file in files:
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.run.run_id:
            ids.add(record.run.run_id)
            for item in record.run.config.update:
                if item.key == "train":
                    found["parameter"] = str(json.loads(item.value_json)["seed"])
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for tag in found.keys() & row.keys():
            found[tag].append((row["step"], row[tag]))
        found["pictures"] += any(key.split("/")[0] == "drawn" for key in row)
assert len(files) == 2 and len(ids) == 1, (files, ids)
found["state"] = "FINISHED"
""",
    "trackio": """
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage

(run,) = Api().runs("tood_jax")
rows = SQLiteStorage.get_logs("tood_jax", run.name)
found = {tag: [(row["step"], row[tag]) for row in rows if tag in row] for tag in TAGS}
found["parameter"] = str(run.config["train"]["seed"])
found["pictures"] = sum("drawn" in row for row in rows)
found["state"] = "FINISHED"
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("logger", READ)
def test_the_real_library_has_both_starts_in_one_run(tmp_path, logger):
    """Offline: MLflow in SQLite, W&B in its offline files, Trackio in its local store."""
    if importlib.util.find_spec(logger) is None:
        pytest.skip(f"{logger} is not installed")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "WANDB_MODE": "offline",
        "WANDB_DATA_DIR": str(tmp_path / "wandb_data"),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HOME": str(tmp_path),
    }

    def run(code, *words):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    folder = str(tmp_path / "run")
    for first, last in ((1, 3), (3, 4)):  # step 3 is repeated
        output = run(WRITE, logger, folder, str(first), str(last))
        assert "warning" not in output, output
    tags = "TAGS = ['train/loss', 'eval/AP', 'eval/class/Gr__e__1_']\n"
    found = json.loads(run(f"{tags}{READ[logger]}\nimport json\nprint(json.dumps(found))", folder).splitlines()[-1])
    losses = {(step, round(value, 6)) for step, value in found["train/loss"]}
    assert losses == {(step, round(1 / step, 6)) for step in (1, 2, 3, 4)}
    assert found["eval/AP"] == [[3, 0.5], [4, 0.5]]
    assert [step for step, _ in found["eval/class/Gr__e__1_"]] == [3, 4]
    assert (found["parameter"], found["pictures"], found["state"]) == ("3", 2, "FINISHED")


@pytest.mark.parametrize(
    ("variables", "netrc", "expected"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "x"}, None, True),
        ({"WANDB_IDENTITY_TOKEN_FILE": "x"}, None, True),
        ({}, "machine api.wandb.ai login user password x", True),
        ({}, "machine other.org login user password x", False),
        ({}, "not a netrc file", False),
    ],
)
def test_wandb_is_offline_without_a_login(tmp_path, monkeypatch, variables, netrc, expected):
    """It would ask at the terminal otherwise."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"NETRC": str(tmp_path / "netrc")} | variables).items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    assert has_login("https://api.wandb.ai") == expected
