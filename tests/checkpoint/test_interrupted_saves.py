"""kill −9 at every point of a save: the former checkpoint stays complete, the damaged one is named and ignored."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.killed_saver import STATES, make_state, save_all
from tood_jax.checkpoint.store import CheckpointStore

ROOT = Path(__file__).resolve().parents[2]


def work(root: Path, points: list[str]) -> None:
    """A child for each point, all forked from one process, which imports once."""
    save_all(root / "first", STATES[:1], root / "first.done")
    for point in points:
        shutil.copytree(root / "first", root / point)
    command = [sys.executable, "-m", "tests.checkpoint.killed_saver", str(root), *points]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def finished(root: Path, point: str) -> list[int]:
    file = root / f"{point}.done"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def assert_whole(root: Path, point: str) -> str:
    """A new store finds the last finished state or the one under way, and goes on saving. Returns what it said."""
    seeds = [seed for _, seed in STATES]
    ended = min(len(finished(root, point)), len(STATES) - 1)
    said: list[str] = []
    left = [p.name for p in (root / point).iterdir() if "tmp" in p.name]
    with CheckpointStore(root / point, 2, said.append) as store:
        state, about = store.restore(make_state(0))
        assert about["seed"] in seeds[ended : ended + 2], (point, said)
        np.testing.assert_array_equal(state["w"], make_state(about["seed"])["w"])
        assert all(any(name in text and "save; removed" in text for text in said) for name in left), (
            left,
            said,
        )
        assert store.save(9, make_state(90), {"seed": 90})
        assert store.restore(make_state(0))[1]["seed"] == 90
    assert {p.name for p in (root / point).iterdir()} <= {"1", "2", "3", "4", "9"}
    return "\n".join(said)


def events(root: Path) -> int:
    """How many changes an undisturbed child makes."""
    work(root, ["never"])
    *seeds, count = finished(root, "never")
    assert seeds == [seed for _, seed in STATES[1:]]
    return count


def check_at(root: Path, numbers: list[int]) -> None:
    points = [f"events-{number}" for number in numbers]
    work(root, points)
    said = [assert_whole(root, point) for point in points]
    assert all(len(finished(root, point)) < len(STATES) for point in points)  # each was killed
    assert any("interrupted" in text for text in said)


def test_at_some_changes(tmp_path: Path) -> None:
    count = events(tmp_path / "count")
    assert count > 40
    check_at(tmp_path / "kill", [count * i // 8 + 1 for i in range(8)])


@pytest.mark.slow
def test_at_every_change(tmp_path: Path) -> None:
    check_at(tmp_path, list(range(1, events(tmp_path / "count") + 1)))


@pytest.mark.slow
def test_while_the_arrays_are_written(tmp_path: Path) -> None:
    """As soon as so many bytes lie there: 200 kB a checkpoint, of which step 1 is there from the start."""
    points = [f"bytes-{size}" for size in range(210_000, 420_000, 10_000)]
    work(tmp_path, points)
    said = [assert_whole(tmp_path, point) for point in points]
    assert any("interrupted" in text for text in said)
