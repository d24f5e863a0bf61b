"""Opening checkpoints for inference: by any path, and no more than is needed."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tood_jax.checkpoint.store import CheckpointError, CheckpointStore, DamagedCheckpointError, open_checkpoint

# On damaged files TensorStore cancels futures of an event loop that Orbax has closed; Python tells it at random times.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ABOUT = {"config": {"name": "toy"}, "classes": [{"id": 3, "name": "cat"}]}


def make_state(seed: int, width: int = 8) -> dict:
    kernel = np.random.default_rng(seed).standard_normal((64, width)).astype(np.float32)
    return {
        "params": {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(width, jnp.bfloat16) / 3}},
        "batch_stats": {"mean": jnp.arange(5.0)},
        "opt_state": ({"head": jnp.asarray(kernel * 2)}, ()),
        "ema": {"head": jnp.asarray(kernel / 2)},
        "step": jnp.asarray(seed, jnp.int32),
    }


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "toy"
    with CheckpointStore(run / "checkpoints", 2) as store:
        for step, ap in ((100, 0.5), (200, 0.4), (300, None)):
            store.save(step, make_state(step), ABOUT, None if ap is None else {"AP": ap})
    return run


def test_open_by_all_kinds_of_path(run_folder: Path) -> None:
    for path in (run_folder, run_folder / "checkpoints", str(run_folder)):
        assert open_checkpoint(path).step == 100
        assert open_checkpoint(path, "latest").step == 300
        assert open_checkpoint(path, 200).about["metrics"] == {"AP": 0.4}
    one = open_checkpoint(run_folder / "checkpoints" / "200")
    assert (one.step, one.about["classes"]) == (200, ABOUT["classes"])
    assert sorted(one.groups) == sorted(make_state(0))


def test_open_reads_the_wanted_groups_only(run_folder: Path) -> None:
    one = open_checkpoint(run_folder, 200)
    # Spoil the optimizer: the checksum in the table no longer fits it, and nobody notices who doesn't read it.
    one.leaves["opt_state/0/head"]["crc32"] ^= 1
    arrays = one.arrays("params", "ema")
    assert_same_bits(arrays, {key: make_state(200)[key] for key in ("params", "ema")})
    subset = {key: make_state(0)[key] for key in ("params", "batch_stats")}
    assert_same_bits(one.restore(subset), {key: make_state(200)[key] for key in subset})
    with pytest.raises(DamagedCheckpointError, match="wrong checksum of opt_state/0/head"):
        one.arrays("opt_state")
    with pytest.raises(CheckpointError, match=r"holds no teacher; it holds .*params"):
        one.arrays("params", "teacher")
    with pytest.raises(CheckpointError, match=r"different: params/head/kernel is float32\[64, 8\]"):
        one.restore({"params": make_state(0, 4)["params"]})


def test_partial_reading_survives_lost_bytes_of_the_rest(tmp_path: Path) -> None:
    """The optimizer's bytes are really not read."""
    noise = np.random.default_rng(0).standard_normal((400, 1000)).astype(np.float32)  # 1.6 MB, a file of its own
    with CheckpointStore(tmp_path, 1) as store:
        store.save(1, {"params": {"w": jnp.arange(50.0)}, "opt_state": jnp.asarray(noise)}, {})
    files = [file for file in (tmp_path / "1" / "state").rglob("d/*") if file.is_file()]
    max(files, key=lambda file: file.stat().st_size).unlink()
    one = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(one.arrays("params")["params"]["w"], np.arange(50.0))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        one.arrays("opt_state")


def test_open_passes_over_a_torn_about(run_folder: Path, said: list[str]) -> None:
    os.truncate(run_folder / "checkpoints" / "300" / "about" / "about.json", 20)
    assert open_checkpoint(run_folder, "latest", said.append).step == 200
    assert "300" in said[0]
    with pytest.raises(DamagedCheckpointError, match=r"about.json cannot be read"):
        open_checkpoint(run_folder, 300)
    for step in (100, 200):
        shutil.rmtree(run_folder / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*: all of 300 are damaged"):
        open_checkpoint(run_folder, log=said.append)


def test_open_says_what_is_wrong_with_a_path(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder: .*nowhere; give the run's folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*runs: it holds toy; give"):
        open_checkpoint(tmp_path / "runs")
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match="it holds nothing"):
        open_checkpoint(tmp_path / "bare")
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model.pth is a file"):
        open_checkpoint(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .* it has 100, 200, 300"):
        open_checkpoint(run_folder, 7)
    with pytest.raises(CheckpointError, match="step 7 was asked for"):
        open_checkpoint(run_folder / "checkpoints" / "200", 7)
    with pytest.raises(CheckpointError, match="'newest'"):
        open_checkpoint(run_folder, "newest")


def test_about_is_strict_json(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, 1) as store:
        store.save(1, {"w": jnp.ones(2)}, {"n": np.int64(3), "x": (1.5, float("inf"))}, {"AP": jnp.float32(0.25)})
    text = (tmp_path / "1" / "about" / "about.json").read_text()
    about = json.loads(text, parse_constant=lambda name: pytest.fail(name))["about"]
    assert about["n"] == 3
    assert about["x"] == [1.5, "inf"]
    assert about["metrics"] == {"AP": 0.25}
