"""Long runs: preemption, restarts by a supervisor, stops in the middle of an evaluation, full disks, goodput."""

import errno
import json
import os
import signal
import subprocess
import sys

import jax
import orbax.checkpoint as ocp
import psutil
import pytest

from tests.runs import (
    NOT_COMPARED,
    ROOT,
    assert_equal_runs,
    finish,
    rows,
    start,
    wait_for_step,
    without_room,
    write_config,
)
from tests.tiny import tiny_config
from tood_jax.api import training
from tood_jax.checkpoint.store import CheckpointStore, open_checkpoint
from tood_jax.cli import train
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.distributed.signals import Reason
from tood_jax.run_log.goodput import KINDS, goodput_shares, read_marks
from tood_jax.training import loop
from tood_jax.training.disk_space import NotSavedError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, ShapesConfig(train_images=12, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    return folder


def marks_of(workdir):
    return read_marks((workdir / "goodput.jsonl").read_text().splitlines())


def restart_loop(command):
    """The loop of docs/distributed.md around another command, without its pause."""
    page = (ROOT / "docs" / "distributed.md").read_text()
    loop = page[page.index("until .venv/bin/python train.py") :]
    loop = loop[: loop.index("\ndone") + len("\ndone")]
    return loop.replace(".venv/bin/python train.py --config configs/NAME.py", command).replace("sleep 10", "sleep 0.1")


@pytest.mark.slow
def test_a_supervisor_goes_on_after_a_preemption(data, tmp_path):
    """The documented loop: SIGTERM makes it start again, and the end of the run ends it."""
    config = write_config(data, tmp_path / "run", checkpoint_every_steps=1000, epochs=5)
    loop = subprocess.Popen(
        ["bash", "-c", restart_loop(f"{sys.executable} train.py --config {config}")],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(tmp_path / "run", 2, loop)
    (child,) = psutil.Process(loop.pid).children()
    child.send_signal(signal.SIGTERM)
    output = finish(loop)
    assert "SIGTERM: saving, then stopping" in output
    assert "Stopped on request (preemption) at step" in output
    assert "Going on from step" in output
    assert len({mark.began for mark in marks_of(tmp_path / "run")}) == 2
    assert "(2 starts)" in output
    assert open_checkpoint(tmp_path / "run", "latest").step == 15


@pytest.mark.parametrize(("status", "starts"), [(0, 1), (1, 1), (2, 1), (73, 1), (130, 1), (75, 3), (137, 3), (134, 3)])
def test_what_a_supervisor_does_with_a_status(tmp_path, status, starts):
    """It starts anew after a preemption, a kill or a crash of the machine; not after errors that would come again."""
    script = tmp_path / "fake.sh"
    script.write_text(
        f'echo x >> {tmp_path}/starts\n[ "$(wc -l < {tmp_path}/starts)" -lt 3 ] && exit {status}\nexit 0\n'
    )
    done = subprocess.run(["bash", "-c", restart_loop(f"bash {script}")], timeout=60, check=False)
    assert len((tmp_path / "starts").read_text().splitlines()) == starts
    assert done.returncode == (0 if starts == 3 else status)


@pytest.mark.slow
def test_slurm_signals_the_data_workers_too(data, tmp_path):
    """SIGUSR1 and then SIGTERM to every process of the job: the workers stay till the loop has its last batch."""
    run = start(data, tmp_path / "run", data_fields={"workers": 1}, epochs=200, eval_every_epochs=0)
    wait_for_step(tmp_path / "run", 2, run)
    os.killpg(run.pid, signal.SIGUSR1)
    os.killpg(run.pid, signal.SIGTERM)
    output = finish(run, status=75)
    assert "SIGUSR1: saving, then stopping" in output
    assert open_checkpoint(tmp_path / "run", "latest").step >= 2


@pytest.mark.slow
def test_a_full_disk_is_said_and_training_goes_on(data, tmp_path):
    """The running process may not write to files for a while: for it, the disk is full."""
    run = start(data, tmp_path / "run", epochs=60, eval_every_epochs=0, checkpoint_every_steps=10)
    wait_for_step(tmp_path / "run", 2, run)
    output = without_room(run.pid, run.stdout, "NOT saved") + finish(run)
    assert "training goes on until the next save" in output
    assert output.count("metrics.jsonl can't be written (File too large); it waits for room") == 1
    assert "Traceback" not in output
    assert open_checkpoint(tmp_path / "run", "latest").step == 180
    steps = [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "train"]
    assert steps == list(range(2, 181, 2))  # what could not be written in time was written later


class Preempted:
    """`compile_detect_step` whose first call after `after` ones is met by SIGTERM."""

    def __init__(self, genuine, after):
        self.genuine, self.after = genuine, after

    def __call__(self, *arguments):
        step = self.genuine(*arguments)

        def detect(*inputs):
            self.after -= 1
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*inputs)

        return detect


@pytest.mark.slow
def test_a_stop_within_an_evaluation(data, tmp_path, monkeypatch):
    """It ends after that batch; the next start evaluates, and the run ends as one that nobody disturbed."""
    outcome = training.train(tiny_config(data, tmp_path / "unbroken"), devices=[jax.devices()[0]])
    assert (outcome.stopped, outcome.step) == (Reason.NONE, 9)
    config = tiny_config(data, tmp_path / "broken")
    with monkeypatch.context() as patch:
        patch.setattr(training, "compile_detect_step", Preempted(training.compile_detect_step, after=1))
        outcome = training.train(config, devices=[jax.devices()[0]])
    assert (outcome.stopped, outcome.step, outcome.metrics) == (Reason.PREEMPTION, 6, None)
    assert [row["kind"] for row in rows(tmp_path / "broken")] == ["train"] * 3
    with monkeypatch.context() as patch:  # and again, in the evaluation that a start begins with
        patch.setattr(training, "compile_detect_step", Preempted(training.compile_detect_step, after=1))
        assert training.train(config, devices=[jax.devices()[0]]).step == 6
    assert training.train(config, devices=[jax.devices()[0]]).stopped is Reason.NONE
    assert_equal_runs(tmp_path / "broken", tmp_path / "unbroken")

    marks = marks_of(tmp_path / "broken")
    shares = goodput_shares(marks)
    assert len({mark.began for mark in marks}) == 3
    assert set(shares) == set(KINDS)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[kind] > 0 for kind in ("steps", "starting", "compiling", "evaluating", "saving"))
    lines = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    speeds = [line["speed"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert all(0 < speed["goodput"] < 1 for speed in speeds)
    assert "speed" in NOT_COMPARED
    assert "Goodput" in (tmp_path / "broken" / "train.log").read_text()


@pytest.mark.slow
def test_a_stop_after_the_last_step_does_not_pass_for_the_end(data, tmp_path, monkeypatch):
    """The evaluation of an earlier step is not the result of the run; the next start evaluates."""
    config = tiny_config(data, tmp_path / "run")
    genuine = loop.log_window

    def stopping(config, plan, step, *rest):
        genuine(config, plan, step, *rest)
        if step == plan.total_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "log_window", stopping)
        outcome = training.train(config, devices=[jax.devices()[0]])
    assert (outcome.stopped, outcome.step, outcome.metrics) == (Reason.PREEMPTION, 9, None)
    assert [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "eval"] == [6]
    outcome = training.train(config, devices=[jax.devices()[0]])
    assert outcome.stopped is Reason.NONE
    assert outcome.metrics is not None
    assert [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "eval"] == [6, 9]


@pytest.mark.slow
def test_an_evaluation_that_was_logged_but_not_saved_is_not_logged_twice(data, tmp_path, monkeypatch):
    """SIGKILL between the two, in effect: the process goes where its metrics should have been saved."""

    class Killed(BaseException):
        pass

    genuine = CheckpointStore.save

    def die(self, step, state, about, metrics=None):
        if metrics is not None:
            raise Killed
        return genuine(self, step, state, about)

    config = tiny_config(data, tmp_path / "run", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", die)
        with pytest.raises(Killed):
            training.train(config, devices=[jax.devices()[0]])
    assert [row["kind"] for row in rows(tmp_path / "run")].count("eval") == 1
    assert open_checkpoint(tmp_path / "run", "latest").about["metrics"] is None
    training.train(config, devices=[jax.devices()[0]])
    assert [row["kind"] for row in rows(tmp_path / "run")].count("eval") == 1
    assert open_checkpoint(tmp_path / "run", "latest").about["metrics"] is not None


class FullDisk:
    """`CheckpointManager.save` that finds no room, `times` times."""

    def __init__(self, genuine, times):
        self.genuine, self.times = genuine, times

    def __call__(self, *arguments, **options):
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.genuine(*arguments, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("times", "seconds"), [(10**6, 1.5), (5, 100)])
def test_done_means_saved(data, tmp_path, monkeypatch, capsys, times, seconds):
    """All saves fail, on the way and at the end: for ever, or until there is room."""
    full = FullDisk(ocp.CheckpointManager.save, times)
    monkeypatch.setattr(ocp.CheckpointManager, "save", lambda *arguments, **options: full(*arguments, **options))
    monkeypatch.setattr(loop, "FINAL_SAVE_SECONDS", seconds)
    config = tiny_config(data, tmp_path / "run", epochs=1)
    if times > 5:
        with pytest.raises(NotSavedError, match=r"final state \(step 3\) could not be saved in .*/run/chec") as end:
            training.train(config, devices=[jax.devices()[0]])
        assert "goes on from the beginning" in str(end.value)
        assert end.value.status == 75
    else:
        assert training.train(config, devices=[jax.devices()[0]]).stopped is Reason.NONE
        assert open_checkpoint(tmp_path / "run", 3, log=pytest.fail).about["metrics"] is not None
    told = capsys.readouterr().out
    assert ("Done. Next:" in told) == (times == 5)
    assert told.count("Step 3 is the last one and not on the disk yet") == 1


@pytest.mark.parametrize("name", ["folder", "config"])
def test_a_full_disk_at_a_start_names_the_path(data, tmp_path, monkeypatch, capsys, name):
    config = write_config(data, tmp_path / "runs" / "run")
    target = folder = tmp_path / "runs/run"
    if name == "config":
        target = folder / "config.json"

    def fail_at(genuine, argument):
        def call(*arguments, **options):
            if os.fspath(arguments[argument]) == str(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[argument]))
            return genuine(*arguments, **options)

        return call

    monkeypatch.setattr(os, "mkdir", fail_at(os.mkdir, 0))
    monkeypatch.setattr(os, "replace", fail_at(os.replace, 1))
    with pytest.raises(SystemExit) as end:
        train.main(["--config", str(config), "--report=False", "--train.batch_size=8", "--train.eval_batch_size=8"])
    assert end.value.code == 75
    errors = capsys.readouterr().err
    assert f"No space left on device: '{target}': make room there; the same command goes on." in errors


def test_a_signal_before_the_first_step(data, tmp_path, monkeypatch, capsys):
    config = write_config(data, tmp_path / "run")
    genuine = training.load_dataset

    def preempted(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return genuine(*args, **options)

    monkeypatch.setattr(training, "load_dataset", preempted)
    with pytest.raises(SystemExit) as end:
        train.main(["--config", str(config), "--report=False"])
    assert end.value.code == 75
    assert "nothing is lost" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
