"""Runs of the tiny config by the real train.py, in processes, and how to compare them."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.tiny import tiny_config
from tood_jax.checkpoint.reader import nest
from tood_jax.checkpoint.store import CheckpointStore, open_checkpoint
from tood_jax.config import save_config, to_dict
from tood_jax.models.build import build_model
from tood_jax.weights.shapes import variable_shapes

ROOT = Path(__file__).resolve().parent.parent
NOT_COMPARED = ("time", "speed")  # of a line of metrics.jsonl: they tell of the machine, not of the run


def write_config(data, workdir, learning_rate=0.02, data_fields=None, assigner=None, **train):
    """The tiny config as a file beside the run's folder."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    path = workdir.parent / f"{workdir.name}.json"
    config = tiny_config(data, workdir, **train)
    drops = tuple(epoch for epoch in config.optimizer.step_epochs if epoch < config.train.epochs)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=learning_rate, step_epochs=drops)
    images = dataclasses.replace(config.data, **(data_fields or {}))
    config = dataclasses.replace(config, optimizer=optimizer, data=images, assigner=assigner or config.assigner)
    save_config(config, path)
    return path


def start(data, workdir, learning_rate=0.02, data_fields=None, assigner=None, **train):
    """train.py on the tiny config, in a process (and a process group) of its own, on one device."""
    path = write_config(data, workdir, learning_rate, data_fields, assigner, **train)
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "train.py", "--config", str(path), "--report=False"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, status=0, timeout=300):
    output = process.communicate(timeout=timeout)[0]
    assert process.returncode == status, output
    return output


def without_room(pid, output, until):
    """The lines of `output` up to one with `until`, while process `pid` may not write to files: its disk is full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    lines = []
    for line in output:
        lines.append(line)
        if until in line:
            break
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "".join(lines)


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


def final_state(workdir):
    checkpoint = open_checkpoint(workdir, "latest")
    return checkpoint.step, checkpoint.arrays(*checkpoint.groups)


def assert_equal_runs(one, other):
    (step, state), (other_step, other_state) = final_state(one), final_state(other)
    assert step == other_step
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    assert rows(one) == rows(other)


def wait_for_step(workdir, step, process):
    """Until metrics.jsonl shows this step (it is written every two), or the run has ended."""
    for _ in range(3000):
        if process.poll() is not None:
            return
        try:
            if any(row["step"] >= step for row in rows(workdir)):
                return
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise TimeoutError(step)


def save_random_run(config, classes, rng):
    """A run folder at config.train.workdir with a checkpoint of random weights."""
    weights = {}
    for name, shape in variable_shapes(build_model(config, len(classes))).items():
        is_positive = name.endswith(("/scale", "/var"))
        weights[name] = rng.normal(1.0 if is_positive else 0.0, 0.1, shape).astype(np.float32)
        weights[name] = np.abs(weights[name]) if is_positive else weights[name]
    about = {"config": to_dict(config), "classes": [category._asdict() for category in classes]}
    with CheckpointStore(Path(config.train.workdir) / "checkpoints", 1) as store:
        store.save(0, nest(weights), about)
