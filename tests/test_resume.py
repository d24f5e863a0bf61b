"""Runs that are killed, stopped or broken go on as if nothing had happened (the real train.py, in processes)."""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.runs import assert_equal_runs, final_state, finish, rows, start, wait_for_step
from tood_jax.checkpoint.reader import pack_about
from tood_jax.checkpoint.store import open_checkpoint
from tood_jax.config import AssignerConfig
from tood_jax.data.synthetic import ShapesConfig, write_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    write_shapes(folder, ShapesConfig(train_images=12, val_images=5, height=(64, 64), width=(64, 64), seed=3))
    return folder


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_LOG_COMPILES", "1")
        output = finish(start(data, workdir))
    workdir.with_suffix(".output").write_text(output)
    return workdir


def test_one_program_trains_and_one_evaluates(unbroken):
    """Neither the second phase, nor the last and smaller batch of an evaluation, nor a save compiles a step again."""
    output = unbroken.with_suffix(".output").read_text()
    assert output.count("Finished XLA compilation of jit(step)") == 2


def test_kill_9_at_a_random_moment(data, unbroken, tmp_path):
    """SIGKILL, started again: parameters, optimizer, EMA and metrics end bit-identical to the unbroken run."""
    seed = random.SystemRandom().randrange(1 << 30)
    dice = random.Random(seed)
    step, delay = dice.choice([2, 4, 6]), dice.uniform(0, 0.7)
    print(f"seed {seed}: killed {delay:.2f} s after step {step}")
    process = start(data, tmp_path / "run")
    wait_for_step(tmp_path / "run", step, process)
    time.sleep(delay)
    process.kill()
    process.wait()
    finish(start(data, tmp_path / "run"))
    assert_equal_runs(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_an_augmented_run_that_is_killed_ends_as_an_unbroken_one(data, unbroken, tmp_path):
    """With mosaic, mixup and repeats, and a closing epoch that begins after the kill."""
    options = {
        "data_fields": {
            "augmentation": "strong",
            "mixup_probability": 0.5,
            "closing_epochs": 1,
            "repeat_threshold": 0.9,
        },
        "assigner": AssignerConfig(warmup_epochs=1, min_positives=1),
    }
    finish(start(data, tmp_path / "whole", **options))
    process = start(data, tmp_path / "run", **options)
    wait_for_step(tmp_path / "run", 4, process)
    process.kill()
    process.wait()
    finish(start(data, tmp_path / "run", **options))
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")
    assert [row.get("loss") for row in rows(tmp_path / "run")] != [row.get("loss") for row in rows(unbroken)]


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(data, unbroken, tmp_path):
    process = start(data, tmp_path / "run", checkpoint_every_steps=1000)
    wait_for_step(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=130)
    assert "saving, then stopping" in output
    assert "The same command goes on from checkpoint" in output
    output = finish(start(data, tmp_path / "run", checkpoint_every_steps=1000))
    assert "Going on from step" in output
    (_, state), (_, expected) = final_state(tmp_path / "run"), final_state(unbroken)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert rows(tmp_path / "run") == rows(unbroken)


def test_a_finished_run_says_so(data, unbroken):
    output = finish(start(data, unbroken))
    assert "is trained to its end (step 9)" in output


def edit_about(workdir, step, edit):
    """Change what a checkpoint says of itself, checksum and all."""
    file = workdir / f"checkpoints/{step}/about/about.json"
    record = json.loads(file.read_text())
    edit(record["about"])
    file.write_text(json.dumps(pack_about(record["about"], record["leaves"])))


def test_a_plan_that_ends_before_the_checkpoint_is_a_sentence(data, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    output = finish(start(data, tmp_path / "run", epochs=2))
    assert "The plan ends at step 6, and" in output
    assert "Going on from step 9" in output
    before = open_checkpoint(tmp_path / "run", 9).about["metrics"]
    edit_about(tmp_path / "run", 9, lambda about: about.update(metrics=None))
    output = finish(start(data, tmp_path / "run", epochs=2))
    assert "The plan ends at step 6, and" in output
    assert "Step 9, 5 images" in output  # it was not evaluated yet
    assert open_checkpoint(tmp_path / "run", 9).about["metrics"] == before


def test_other_data_are_refused_unless_accepted(data, unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.copytree(data, tmp_path / "set")
    file = tmp_path / "set/annotations/instances_train.json"
    tree = json.loads(file.read_text())
    kept = {one["id"] for one in tree["images"][:8]}
    file.write_text(
        json.dumps(
            tree
            | {
                "images": tree["images"][:8],
                "annotations": [one for one in tree["annotations"] if one["image_id"] in kept],
            }
        )
    )
    output = finish(start(tmp_path / "set", tmp_path / "run"), status=1)
    assert "data.train has 8 images (was 12)" in output
    assert "Traceback" not in output
    output = finish(start(tmp_path / "set", tmp_path / "run", accept_other_data=True))
    assert "Step 9 is the end of epoch 4.50 now (it was 3.00)" in output

    tree["categories"][0]["name"] = "ring"
    for split in ("train", "val"):
        other = json.loads((data / f"annotations/instances_{split}.json").read_text())
        named = json.dumps(other | {"categories": tree["categories"]})
        (tmp_path / f"set/annotations/instances_{split}.json").write_text(named)
    output = finish(start(tmp_path / "set", tmp_path / "run", accept_other_data=True), status=1)
    assert "was trained on other classes: 'disc' is 'ring' now" in output

    def forget(about):
        del about["fingerprint"]

    edit_about(tmp_path / "run", 9, forget)
    assert "trained to its end" in finish(start(data, tmp_path / "run"))  # a checkpoint from before there were any


def test_the_run_left_what_it_should(unbroken):
    assert {"metrics.jsonl", "train.log", "config.json", "checkpoints", "pictures"} <= {
        p.name for p in unbroken.iterdir()
    }
    assert any(p.name.startswith("events.out.tfevents") for p in unbroken.rglob("*"))
    kinds = [row["kind"] for row in rows(unbroken)]
    assert kinds.count("eval") == 2  # after epoch 2 and at the end
    phases = [row["task_aligned"] for row in rows(unbroken) if row["kind"] == "train"]
    assert phases[0] == 0
    assert phases[-1] == 1
    about = open_checkpoint(unbroken, "latest").about
    assert about["data"] == {"seed": 0, "next_batch": 9}
    assert [one["name"] for one in about["classes"]] == ["disc", "box", "triangle", "star"]


def test_a_non_finite_loss_stops_with_the_step_and_the_evidence(data, tmp_path):
    workdir = tmp_path / "run"
    output = finish(start(data, workdir, learning_rate=1e6), status=1)
    assert "gave a non-finite" in output
    assert "Traceback" not in output
    evidence = next(workdir.glob("non_finite_step_*"))
    step = int(evidence.name.rpartition("_")[2])
    assert f"Step {step}" in output
    assert np.load(evidence / "batch.npz")["images"].dtype == np.uint8
    checkpoint = open_checkpoint(workdir, "latest")
    assert checkpoint.step == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoint.arrays("params")))
