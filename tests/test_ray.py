"""RayPredictor: its rows, and a job on a local Ray cluster of which a worker is killed.

The job needs the package ray.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet
import pytest

import tood_jax
from tests.runs import ROOT, save_random_run
from tests.tiny import tiny_config
from tood_jax.data.dataset import ClassInfo
from tood_jax.integrations import RayPredictor

CLASSES = (ClassInfo(1, "disc"), ClassInfo(2, "box"))
COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of noise in pictures/, the last of which is broken, and a run in run/."""
    root = tmp_path_factory.mktemp("ray")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT - 1):
        cv2.imwrite(str(root / "pictures" / f"{number:03d}.png"), rng.integers(0, 256, (64, 48, 3), np.uint8))
    (root / "pictures" / "broken.png").write_bytes(b"no picture")
    config = tiny_config(root, root / "run")
    config = replace(config, detect=replace(config.detect, score_threshold=0.001, max_detections=5))
    save_random_run(config, CLASSES, rng)
    return root


class KilledPredictor(RayPredictor):
    """Ends its process without a word in its second batch, once in the job."""

    def __init__(self, checkpoint, marker):
        super().__init__(checkpoint)
        self._marker, self._batches = Path(marker), 0

    def __call__(self, files):
        self._batches += 1
        if self._batches == 2:
            try:
                self._marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(files)


def assert_rows(rows, folder):
    """Each picture once, with the detections of the detector in Python; the broken one with its error."""
    files = sorted((folder / "pictures").iterdir())
    assert sorted(row["path"] for row in rows) == [str(file) for file in files]
    of_path = {row["path"]: row for row in rows}
    broken = of_path.pop(str(files[-1]))
    assert "broken.png" in broken["error"]
    assert broken["boxes"] is None
    model = tood_jax.load(folder / "run")
    for file in files[:-1]:
        row, expected = of_path[str(file)], model(file)
        assert (row["width"], row["height"], row["error"]) == (48, 64, None)
        np.testing.assert_allclose(row["scores"], expected.scores, atol=1e-5)
        assert row["names"] == list(expected.names)
        assert len(row["boxes"]) == len(expected) > 0


def test_a_batch_of_files_becomes_rows(folder):
    files = sorted((folder / "pictures").iterdir())
    batch = {"path": np.asarray([str(file) for file in files]), "bytes": [file.read_bytes() for file in files]}
    table = RayPredictor(str(folder / "run"), tta="")(batch)
    assert_rows(table.to_pylist(), folder)


@pytest.mark.slow
def test_each_image_is_once_in_parquet_after_a_worker_was_killed(folder, tmp_path):
    ray = pytest.importorskip("ray")
    # two of the four for the detectors; those that read and write need their own
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ray.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    try:
        files = ray.data.read_binary_files(str(folder / "pictures"), include_paths=True)
        arguments = [str(folder / "run"), str(tmp_path / "killed")]
        found = files.map_batches(KilledPredictor, fn_constructor_args=arguments, batch_size=4, concurrency=2)
        found.write_parquet(str(tmp_path / "found"))
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert_rows(pyarrow.parquet.read_table(tmp_path / "found").to_pylist(), folder)
