"""Two processes, started by the launcher, equal one: train.py and eval.py on CPU devices that talk by gloo."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest
import safetensors.numpy

from tests import runs
from tests.runs import ROOT, rows
from tests.tiny import tiny_config
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.config import DetectConfig, ParallelConfig, save_config
from tood_jax.data.synthetic import ShapesConfig, write_shapes
from tood_jax.models.build import build_model
from tood_jax.weights.shapes import variable_shapes

finish = functools.partial(runs.finish, timeout=900)  # two processes on two cores take their time


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 images to train on and 5 to evaluate, which 2 processes, or batches of 4, don't divide."""
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, ShapesConfig(train_images=12, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    return folder


def write_config(data, workdir, high=False, parallel=None, **train):
    """The tiny config for 64×64 images, or for 256×64 ones; its file."""
    config = tiny_config(data, workdir, **{"epochs": 2, **train})  # by ATSS, then task-aligned
    images = dataclasses.replace(config.data, max_objects=3)  # some of at most five are left out, which is said
    if high:
        images = dataclasses.replace(images, buckets=((256, 64),), max_long_side=256)
    config = dataclasses.replace(
        config,
        data=images,
        parallel=parallel or ParallelConfig(),
        detect=DetectConfig(score_threshold=0.001),
        optimizer=dataclasses.replace(config.optimizer, step_epochs=()),
    )
    workdir.parent.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir.with_suffix(".json"))
    return str(workdir.with_suffix(".json"))


def start(words, processes=1, devices=2, logs=None):
    """A door with so many processes and devices in all; one process runs without the launcher."""
    launcher = ["-m", "tood_jax.cli.launch", f"-n{processes}", f"--devices_per_process={devices // processes}"]
    command = [sys.executable, *([*launcher, f"--logs={logs}"] if processes > 1 else []), *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def train(data, workdir, processes=1, devices=2, **config):
    words = ["train.py", "--config", write_config(data, workdir, **config)]
    return finish(start(words, processes, devices, workdir.with_suffix(".logs")))


def child(process, index):
    """The launcher's process of that number."""
    [found] = [one for one in psutil.Process(process.pid).children() if one.environ()["JAX_PROCESS_ID"] == str(index)]
    return found


def final_state(workdir):
    checkpoint = open_checkpoint(workdir, "latest", log=pytest.fail)
    return checkpoint.arrays(*checkpoint.groups)


def assert_equal_runs(one, other, tolerance=1e-5):
    """Every number of every line to 1e-5, and every array of the last checkpoint, in norm."""
    ours, theirs = rows(one), rows(other)
    assert [row["kind"] for row in ours].count("eval") >= 1
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), _numbers(a), _numbers(b))
    shares = jax.tree.leaves_with_path(jax.tree.map(_difference, final_state(one), final_state(other)))
    worst, path = max((share, jax.tree_util.keystr(path)) for path, share in shares)
    print(f"largest difference of an array: {worst:.1e} of its norm, {path}")
    assert worst <= tolerance, path


def _difference(x, y):
    """‖x − y‖ as a share of ‖y‖; arrays of norms below 1e-6 count as if they had that."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-6)


def _numbers(row):
    return {k: v if v is not None else np.nan for k, v in row.items() if k not in ("kind", "class_ap")}


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(data, workdir)
    return workdir


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Two processes with one device each; the run, and what was said."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, train(data, workdir, processes=2)


def left_out(workdir):
    """What the log says at its end of the data that were left out."""
    return re.findall(r"Training data so far: (.*)", (workdir / "train.log").read_text())[-1]


@pytest.mark.slow
def test_two_processes_equal_one(one, two):
    workdir, said = two
    assert_equal_runs(workdir, one)
    assert "Step 6, 5 images" in said
    assert left_out(workdir) == left_out(one)  # of all, not of the primary process
    assert said.count("Done. Next:") == 1
    other = (workdir.with_suffix(".logs") / "process_1.log").read_text()
    assert "step 2/6" not in other
    assert len(list(workdir.rglob("events.out.tfevents*"))) == 1
    assert {path.name for path in workdir.iterdir()} == {path.name for path in one.iterdir()}
    written = {path.name for path in (workdir / "checkpoints/6/state").iterdir()}
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= written  # both wrote their share


@pytest.mark.slow
def test_eval_in_two_processes_equals_one(one, tmp_path):
    words = ["eval.py", "--checkpoint", str(one)]
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        said = finish(start([*words, f"--out={out}"], processes, logs=tmp_path / "logs"))
        assert said.count("detections in 5 images written") == 1
        tables.append(re.findall(r"^ +[\d. na/]+$", said, re.MULTILINE))
    assert tables[0]
    assert tables[0] == tables[1]
    first, second = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert first
    assert [row["image_id"] for row in first] == [row["image_id"] for row in second]
    np.testing.assert_allclose([row["score"] for row in first], [row["score"] for row in second], rtol=1e-5)
    np.testing.assert_allclose([row["bbox"] for row in first], [row["bbox"] for row in second], atol=1e-3)


@pytest.mark.slow
def test_all_processes_start_from_the_same_commit_of_a_branch_that_moves(data, hub, tmp_path):
    """The branch has another commit after each request for it; each host downloads the one that the primary found."""
    config = tiny_config(data, tmp_path / "run")
    shapes = variable_shapes(build_model(config, 4))

    def commit():
        value = np.float32(len(hub.repos["user/moves"]["commits"]) if "user/moves" in hub.repos else 0)
        tensors = {name: np.full(shape, value) for name, shape in shapes.items() if "/backbone/" in name}
        hub.add("user/moves", {"model.safetensors": safetensors.numpy.save(tensors)})

    commit()
    hub.after_listing = commit
    try:
        words = [
            "train.py",
            "--config",
            write_config(data, tmp_path / "run", epochs=1),
            "--init_from",
            "hf://user/moves",
        ]
        said = finish(start(words, processes=2, logs=tmp_path / "logs"))
    finally:
        hub.after_listing = lambda: None
    assert said.count("hf://user/moves") == 2
    assert "the whole backbone" in said
    assert hub.count("GET", "/api/models/user/moves") == 1


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [ParallelConfig(split_state=True), ParallelConfig(space=2)])
def test_split_states_and_split_images(tmp_path, parallel):
    """Four devices in two processes, by twos where images are split; from a checkpoint half-way, too."""
    high = parallel.space > 1
    size = (256, 256) if high else (64, 64)
    write_shapes(tmp_path / "set", ShapesConfig(train_images=12, val_images=5, height=size, width=(64, 64), seed=3))
    settings = {"devices": 4, "parallel": parallel, "high": high}
    train(tmp_path / "set", tmp_path / "one/run", **settings)
    train(tmp_path / "set", tmp_path / "two/run", processes=2, **settings)
    # Four numbers are added up in another order in one process than in two (found: 4e-5, in the momentum of a scalar).
    assert_equal_runs(tmp_path / "two/run", tmp_path / "one/run", tolerance=3e-4)
    if parallel.split_state:
        leaves = open_checkpoint(tmp_path / "two/run", "latest").leaves
        assert any(len(leaf.get("parts", [])) == 4 for leaf in leaves.values())
        said = train(tmp_path / "set", tmp_path / "two/run", epochs=3, **settings)
        assert "Going on from step 6" in said
        assert "damaged" not in said


@pytest.mark.slow
def test_checkpoints_go_from_two_processes_to_one_and_back(data, tmp_path):
    """Epoch by epoch in 2, 1 and 2 processes, against 1, 1 and 1."""
    for name, counts in (("mixed", (2, 1, 2)), ("one", (1, 1, 1))):
        for epoch, processes in enumerate(counts):
            said = train(data, tmp_path / name / "run", processes, epochs=epoch + 1)
            assert ("Going on from step" in said) == (epoch > 0)
            assert "damaged" not in said
    assert_equal_runs(tmp_path / "mixed/run", tmp_path / "one/run")


@pytest.mark.slow
def test_a_signal_at_one_process_stops_all_after_the_same_step(data, two, tmp_path):
    """The second process hears it, and not through the launcher; `two` has filled the compilation cache."""
    config = write_config(data, tmp_path / "run", epochs=400, eval_every_epochs=0, checkpoint_every_steps=10_000)
    process = start(["train.py", "--config", config, "--report=False"], processes=2, logs=tmp_path / "logs")
    while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.05)
    child(process, 1).send_signal(signal.SIGUSR1)
    said = finish(process, status=75)
    assert "SIGUSR1: saving, then stopping" in (tmp_path / "logs/process_1.log").read_text()
    assert "SIGUSR1" not in said
    [step] = re.findall(r"Stopped on request \(preemption\) at step (\d+) of 1200\. .* from checkpoint \1\.", said)
    assert open_checkpoint(tmp_path / "run", "latest", log=pytest.fail).about["data"]["next_batch"] == int(step)


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_and_stops_all(data, tmp_path):
    """After the same step: else one would wait for the other in the next."""
    words = [
        "train.py",
        "--config",
        write_config(data, tmp_path / "run", epochs=200, eval_every_epochs=0),
        "--report=False",
    ]
    process = start(words, processes=2, logs=tmp_path / "logs")
    while process.poll() is None and not (tmp_path / "run/checkpoints/4").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = finish(process, status=75)
    step = int(re.search(r"Stopped on request \(preemption\) at step (\d+)", said)[1])
    assert open_checkpoint(tmp_path / "run", "latest", log=pytest.fail).step == step
    write_config(data, tmp_path / "run", epochs=step // 3 + 1, eval_every_epochs=0)
    assert f"Going on from step {step}" in finish(start(words, processes=2, logs=tmp_path / "logs"))


@pytest.mark.slow
def test_a_full_disk_at_one_process_is_said_and_training_goes_on(data, two, tmp_path):
    """The second may not write to files for a while; no process waits for what it couldn't write."""
    settings = {"epochs": 60, "eval_every_epochs": 0, "checkpoint_every_steps": 20}
    words = ["train.py", "--config", write_config(data, tmp_path / "run", **settings), "--report=False"]
    process = start(words, processes=2, logs=tmp_path / "logs")
    while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.05)
    output = runs.without_room(child(process, 1).pid, process.stdout, "NOT saved") + finish(process)
    assert "NOT saved (in process 1: File too large); training goes on until the next save" in output
    assert "Traceback" not in output
    assert open_checkpoint(tmp_path / "run", "latest", log=pytest.fail).step == 180


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_process_ends_the_run(data, tmp_path, victim):
    """At once, naming it; and the same command goes on."""
    words = [
        "train.py",
        "--config",
        write_config(data, tmp_path / "run", epochs=200, eval_every_epochs=0),
        "--report=False",
    ]
    process = start(words, processes=2, logs=tmp_path / "logs")
    while process.poll() is None and not (tmp_path / "run/checkpoints/4").exists():
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    child(process, victim).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = finish(process, status=137)
    assert time.monotonic() - killed < 120  # it wasn't the heartbeat of one that hung
    assert f"launch: process {victim} ended by SIGKILL" in said
    if victim == 1:
        assert "Another process of this run has ended" in said
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
    steps = [int(path.name) for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()]
    write_config(data, tmp_path / "run", epochs=-(-max(steps) // 3) + 1, eval_every_epochs=0)
    assert "Going on from step" in finish(start(words, processes=2, logs=tmp_path / "logs"))
