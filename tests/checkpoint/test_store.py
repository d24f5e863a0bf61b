"""Checkpoints: bit-exact, atomic, and honest about damage."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tood_jax.checkpoint import reader
from tood_jax.checkpoint.orbax_noise import silence_orbax
from tood_jax.checkpoint.store import CheckpointError, CheckpointStore, open_checkpoint

# On damaged files TensorStore cancels futures of an event loop that Orbax has closed; Python tells it at random times.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

Momentum = namedtuple("Momentum", ["count", "trace"])
ABOUT = {"config": {"name": "toy", "size": [800, 1088]}, "classes": [{"id": 3, "name": "cat"}]}


def make_state(seed: int, width: int = 8) -> dict:
    random = np.random.default_rng(seed)
    kernel = random.standard_normal((64, width)).astype(np.float32)
    kernel[0, :4] = [np.nan, np.inf, -0.0, 1e-42]  # values that a careless path would change
    return {
        "params": {"head": {"kernel": jnp.asarray(kernel), "bias": jnp.ones(width, jnp.bfloat16) / 3}},
        "batch_stats": {"mean": jnp.asarray(random.standard_normal(5).astype(np.float32))},
        "opt_state": (Momentum(jnp.asarray(7, jnp.int32), {"head": jnp.asarray(kernel * 2)}), (), None),
        "ema": {"head": jnp.asarray(kernel / 2)},
        "step": jnp.asarray(seed, jnp.int32),
        "rng": jax.random.key_data(jax.random.key(seed)),
        "mask": jnp.asarray([True, False]),
        "empty": jnp.zeros((0, 4), jnp.float32),
    }


def assert_same_bits(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes()


def data_files(step_folder: Path) -> list[Path]:
    """Files with the arrays' bytes, the largest first."""
    files = [file for file in (step_folder / "state").rglob("*") if file.is_file() and file.parent.name == "d"]
    return sorted(files, key=lambda file: -file.stat().st_size)


def flip_a_byte(file: Path, position: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * position)] ^= 0x40
    file.write_bytes(content)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def two(tmp_path: Path, said: list[str]) -> Path:
    """A folder with complete checkpoints 1 and 2."""
    with CheckpointStore(tmp_path / "ck", keep_latest=2, log=said.append) as store:
        for step in (1, 2):
            assert store.save(step, make_state(step), ABOUT)
    assert not said
    return tmp_path / "ck"


def test_round_trip_is_bit_exact(two: Path) -> None:
    with CheckpointStore(two, 2) as store:
        state, about = store.restore(jax.eval_shape(lambda: make_state(0)))
    assert_same_bits(state, make_state(2))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert {key: about[key] for key in ABOUT} == ABOUT
    assert about["step"] == 2
    assert "jax" in about["versions"]


def test_a_named_step_is_restored(two: Path) -> None:
    with CheckpointStore(two, 2) as store:
        assert_same_bits(store.restore(make_state(0), step=1)[0], make_state(1))
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .* it has 1, 2"):
            store.restore(make_state(0), step=5)


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    ap = {1: 0.2, 2: 0.625, 3: float("nan"), 4: 0.5, 5: None, 6: 0.1}
    with CheckpointStore(tmp_path, keep_latest=2) as store:
        for step in range(1, 7):
            metrics = None if ap[step] is None else {"AP": np.float32(ap[step])}
            store.save(step, {"w": jnp.full(3, step)}, {}, metrics)
    with CheckpointStore(tmp_path, keep_latest=2) as store:
        assert store.steps() == [2, 5, 6]
        assert (store.latest_step(), store.best_step()) == (6, 2)
        store.save(7, {"w": jnp.full(3, 7)}, {}, {"AP": 0.625})  # as good, and later
        store.save(8, {"w": jnp.full(3, 8)}, {}, {})
        store.wait()
        assert store.steps() == [7, 8]
        assert store.best_step() == 7


def test_without_ap_only_the_newest_are_kept(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_latest=1) as store:
        for step in (1, 2, 3):
            store.save(step, {"w": jnp.full(3, step)}, {}, {"AP": float("nan")} if step == 1 else None)
        store.wait()
        assert store.steps() == [3]
        assert store.best_step() is None


def test_donated_buffers_may_be_overwritten_at_once(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x = jnp.arange(2_000_000, dtype=jnp.float32)
    place = x.unsafe_buffer_pointer()
    with CheckpointStore(tmp_path, 1) as store:
        store.save(1, {"x": x}, {})
        y = step(x)
        assert y.unsafe_buffer_pointer() == place  # the copy kept no hold on the buffer
        state, _ = store.restore({"x": y})
    np.testing.assert_array_equal(state["x"], np.arange(2_000_000, dtype=np.float32))


def test_no_flipped_byte_is_restored_silently(two: Path, said: list[str]) -> None:
    """Some bytes of OCDBT files are dead: then the newest is still whole. All others lead to the older one."""
    fallbacks = 0
    with CheckpointStore(two, 2, said.append) as store:
        for file in data_files(two / "2"):
            content = file.read_bytes()
            for position in (0.2, 0.5, 0.8):
                flip_a_byte(file, position)
                said.clear()
                state, about = store.restore(make_state(0))
                assert_same_bits(state, make_state(about["step"]))
                assert [str(two / "2") in text for text in said] == [True] * (2 - about["step"])
                fallbacks += len(said)
                file.write_bytes(content)
    assert fallbacks > 0


def test_step_folders_that_changed_places_are_not_taken_for_each_other(two: Path, said: list[str]) -> None:
    (two / "2").rename(two / "x")
    (two / "1").rename(two / "2")
    (two / "x").rename(two / "1")
    with CheckpointStore(two, 2, said.append) as store:
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            store.restore(make_state(0))
        assert f"{two / '2'} holds the checkpoint of step 1: give the folder that name" in said[0]
    with pytest.raises(CheckpointError, match="holds the checkpoint of step 1"):
        open_checkpoint(two / "2")
    (two / "2").rename(two / "3")  # a single one is skipped
    (two / "1").rename(two / "2")
    with CheckpointStore(two, 2, said.append) as store:
        assert_same_bits(store.restore(make_state(0))[0], make_state(2))


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 1e7])
def test_a_clock_that_jumps_costs_no_save(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    genuine, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: genuine() + jump * next(looks))
    with CheckpointStore(tmp_path, 2, said.append) as store:
        for step in (1, 2, 3):
            assert store.save(step, make_state(step), ABOUT)
            store.wait()
        assert store.steps() == [2, 3]
    assert said == []


def test_it_knows_what_is_really_on_the_disk(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, 2) as store:
        assert not store.holds(1, evaluated=False)
        store.save(1, make_state(1), ABOUT)
        assert store.holds(1, evaluated=False)
        assert not store.holds(1, evaluated=True)
        store.save(1, make_state(1), ABOUT, {"AP": 0.5})
        assert store.holds(1, evaluated=True)
        assert not store.holds(2, evaluated=False)
        file = data_files(tmp_path / "1")[0]
        file.write_bytes(file.read_bytes()[:-1000])
        assert not store.holds(1, evaluated=False)


def test_a_check_of_about_comes_before_all_else(two: Path) -> None:
    def refuse(about: dict) -> None:
        raise CheckpointError(f"not {about['step']}")

    with CheckpointStore(two, 2) as store, pytest.raises(CheckpointError, match="not 2"):
        store.restore({"params": jnp.ones(7)}, check=refuse)


def test_wrong_values_are_named_by_leaf(two: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the flip survives decompression: only the checksum tells."""
    genuine = reader.named_leaves

    def flipped(tree):
        found = genuine(tree)
        if "batch_stats/mean" in found and isinstance(found["batch_stats/mean"], np.ndarray):
            found["batch_stats/mean"] = np.nextafter(found["batch_stats/mean"], np.float32(9))
        return found

    monkeypatch.setattr(reader, "named_leaves", flipped)
    with CheckpointStore(two, 2, said.append) as store, pytest.raises(CheckpointError, match="no complete checkpoint"):
        store.restore(make_state(0))
    assert "wrong checksum of batch_stats/mean" in said[0]


@pytest.mark.parametrize(
    ("harm", "victim"),
    [("truncate", victim) for victim in ("data", "manifest", "_METADATA", "about.json")]
    + [("delete", victim) for victim in ("data", "manifest", "about.json")],  # it is whole without _METADATA
)
def test_truncated_and_deleted_files(two: Path, said: list[str], harm: str, victim: str) -> None:
    files = {
        "data": data_files(two / "2"),  # all: of one it isn't sure that its bytes are still referred to
        "manifest": [two / "2" / "state" / "manifest.ocdbt"],
        "_METADATA": [two / "2" / "state" / "_METADATA"],
        "about.json": [two / "2" / "about" / "about.json"],
    }
    for file in files[victim]:
        if harm == "delete":
            file.unlink()
        else:
            os.truncate(file, file.stat().st_size // 2)
    with CheckpointStore(two, 2, said.append) as store:
        state, _ = store.restore(make_state(0))
        assert_same_bits(state, make_state(1))
        assert f"{two / '2'}: " in said[0]
        # The damaged one makes room for the course that continues from 1, and nothing is lost.
        store.save(2, make_state(22), ABOUT)
        assert_same_bits(store.restore(make_state(0))[0], make_state(22))


def test_a_changed_about_is_noticed(two: Path, said: list[str]) -> None:
    file = two / "2" / "about" / "about.json"
    file.write_text(file.read_text().replace("1088", "1089"))
    with CheckpointStore(two, 2, said.append) as store:
        assert store.restore(make_state(0))[1]["step"] == 1
    assert "about.json cannot be read: it has a wrong checksum" in said[0]


def test_all_torn_or_none_there(two: Path, tmp_path: Path, said: list[str]) -> None:
    for step in (1, 2):
        for file in data_files(two / str(step)):
            file.unlink()
    with CheckpointStore(two, 2, said.append) as store:
        with pytest.raises(CheckpointError, match=f"no complete checkpoint in {two}"):
            store.restore(make_state(0))
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            store.restore(make_state(0), step=1)
    with CheckpointStore(tmp_path / "new", 2) as store, pytest.raises(CheckpointError, match=r"no checkpoint in .*new"):
        store.restore(make_state(0))


def test_another_architecture_is_one_error_with_every_leaf(two: Path, said: list[str]) -> None:
    other = make_state(0, width=16)
    del other["ema"], other["batch_stats"]
    other["params"]["tail"] = jnp.zeros(3)
    other["step"] = jnp.zeros((), jnp.float32)
    with CheckpointStore(two, 2, said.append) as store, pytest.raises(CheckpointError) as caught:
        store.restore(other)
    lines = str(caught.value).splitlines()
    assert str(two / "2") in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == sorted(
        [
            "missing in the checkpoint: params/tail float32[3]",
            "unexpected in the checkpoint: batch_stats/mean float32[5]",
            "unexpected in the checkpoint: ema/head float32[64, 8]",
            "different: params/head/kernel is float32[64, 8] in the checkpoint, float32[64, 16] in this run",
            "different: params/head/bias is bfloat16[8] in the checkpoint, bfloat16[16] in this run",
            "different: opt_state/0/trace/head is float32[64, 8] in the checkpoint, float32[64, 16] in this run",
            "different: step is int32[] in the checkpoint, float32[] in this run",
        ]
    )
    assert not said


def test_restore_under_another_sharding(tmp_path: Path) -> None:
    def sharding(devices: int, spec: PartitionSpec) -> NamedSharding:
        mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
        return NamedSharding(mesh, spec)

    kernel = np.arange(64, dtype=np.float32).reshape(16, 4)
    for step, (devices, spec) in enumerate([(8, PartitionSpec()), (8, PartitionSpec("x")), (1, PartitionSpec())], 1):
        with CheckpointStore(tmp_path / str(step), 1) as store:
            store.save(step, {"w": jax.device_put(kernel, sharding(devices, spec))}, {})
            for target in (
                sharding(8, PartitionSpec()),
                sharding(2, PartitionSpec(None, "x")),
                sharding(1, PartitionSpec()),
            ):
                state, _ = store.restore({"w": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=target)})
                assert state["w"].sharding == target
                np.testing.assert_array_equal(state["w"], kernel)


def test_saving_a_step_again_renews_the_metrics_only(two: Path, said: list[str]) -> None:
    inode = data_files(two / "2")[0].stat().st_ino
    with CheckpointStore(two, 2, said.append) as store:
        assert store.save(2, make_state(2), {**ABOUT, "note": "evaluated"}, {"AP": 0.4})
        assert store.best_step() == 2
        assert store.save(2, make_state(2), ABOUT)  # at the end of the run, say: the metrics stay
        state, about = store.restore(make_state(0))
    assert_same_bits(state, make_state(2))
    assert about["metrics"] == {"AP": 0.4}
    assert data_files(two / "2")[0].stat().st_ino == inode
    assert not said


def test_a_step_with_another_state_is_replaced(two: Path, said: list[str]) -> None:
    with CheckpointStore(two, 2, said.append) as store:
        assert store.save(2, make_state(5), ABOUT)
        assert_same_bits(store.restore(make_state(0))[0], make_state(5))
        assert store.steps() == [1, 2]
    assert "checkpoint 2 exists with another state" in said[0]
    assert not (two / "replaced").exists()


def test_later_steps_are_set_aside(two: Path, said: list[str]) -> None:
    with CheckpointStore(two, keep_latest=1, log=said.append) as store:
        store.restore(make_state(0), step=1)
        store.save(1, make_state(11), ABOUT)
        store.wait()
        assert store.steps() == [1]
        store.save(2, make_state(12), ABOUT)
        store.save(1, make_state(13), ABOUT)
        assert_same_bits(store.restore(make_state(0))[0], make_state(13))
    assert sorted(p.name for p in (two / "set_aside").iterdir()) == ["2", "2-2"]
    assert any("move to" in text for text in said)


def test_a_cut_off_replacement_brings_the_former_back(two: Path, said: list[str]) -> None:
    (two / "replaced").mkdir()
    (two / "2").rename(two / "replaced" / "2")
    (two / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    with CheckpointStore(two, 2, said.append) as store:
        assert_same_bits(store.restore(make_state(0))[0], make_state(2))
    assert "2.orbax-checkpoint-tmp is left of an interrupted save" in said[0]
    assert "kept the former one" in said[1]
    assert sorted(p.name for p in two.iterdir()) == ["1", "2"]


KILLED = """
import sys, jax.numpy as jnp, numpy as np
from tood_jax.checkpoint.store import CheckpointStore
store = CheckpointStore(sys.argv[1], 2)
store.save(1, {"w": jnp.arange(1000)}, {})
store.wait()
noise = np.random.default_rng(0).standard_normal((300, 1000), np.float32)
print("first", flush=True)
for step in range(2, 100):
    store.save(step, {str(i): noise + i for i in range(100)}, {})
"""


def test_kill_9_in_a_save_leaves_the_former_whole(tmp_path: Path, said: list[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "first\n"
        deadline = time.monotonic() + 20
        # Not merely begun: some of its arrays are on the disk.
        while not any(file.stat().st_size > 1000 for file in tmp_path.glob("2.*tmp*/state*/ocdbt*/d/*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("2")] != ["2"]
    with CheckpointStore(tmp_path, 2, said.append) as store:
        state, _ = store.restore({"w": jax.ShapeDtypeStruct((1000,), jnp.int32)})
    np.testing.assert_array_equal(state["w"], np.arange(1000))
    assert "left of an interrupted save" in said[0]
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("where", ["at once", "metadata", "tensorstore"])
def test_a_full_disk_is_said_and_training_goes_on(
    two: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    import tensorstore
    from etils import epath

    genuine = CheckpointStore(two, 2, said.append)
    full = OSError(28, "No space left on device")

    def fail(*_args, **_kwargs):
        raise full

    async def fail_later(*_args, **_kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patch:
        if where == "at once":
            patch.setattr(ocp.CheckpointManager, "save", fail)
        elif where == "metadata":
            patch.setattr(type(epath.Path("x")), "write_text", fail)
        else:
            patch.setattr(tensorstore, "open", fail_later)
        genuine.save(3, make_state(3), ABOUT)
        genuine.save(2, make_state(33), ABOUT)  # to replace one, in trouble
        genuine.wait()
    assert sum("NOT saved" in text for text in said) == 2
    assert "No space left" in said[0]
    assert genuine.steps() == [1, 2]
    assert genuine.save(4, make_state(4), ABOUT)
    assert_same_bits(genuine.restore(make_state(0))[0], make_state(4))
    genuine.close()
    assert sorted(p.name for p in two.iterdir()) == ["2", "4"]


def test_other_errors_are_raised(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(two, 2)

    def fail(*_args, **_kwargs):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(ZeroDivisionError):
            store.save(3, make_state(3), ABOUT)
    assert store.save(4, make_state(4), ABOUT)
    store.close()
    with pytest.raises(TypeError, match="can't be written as JSON"), CheckpointStore(two, 2) as store:
        store.save(5, make_state(5), {"config": object()})
    with pytest.raises(TypeError, match="rng is a typed key"), CheckpointStore(two, 2) as store:
        store.save(5, {"rng": jax.random.key(0)}, {})
    with pytest.raises(TypeError, match="step is a int"), CheckpointStore(two, 2) as store:
        store.save(5, {"step": 5}, {})
    with pytest.raises(ValueError, match="below another leaf"), CheckpointStore(two, 2) as store:
        store.save(5, {"a": jnp.ones(1), "a/b": jnp.ones(1)}, {})
    with pytest.raises(ValueError, match="keep_latest"):
        CheckpointStore(two, 0)
    with pytest.raises(ValueError, match="mounted"):
        CheckpointStore("gs://bucket/run", 1)


def test_orbax_is_silenced_once() -> None:
    silence_orbax()
    silence_orbax()
    assert len(logging.getLogger("absl").filters) == 1
