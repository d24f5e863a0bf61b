"""Seeded damage to annotation files, images and checkpoints: each is read, or ends in its one expected error.

FUZZ_SEED=n draws other damage, FUZZ_SECONDS other budgets. What is found becomes a named test where it belongs.
"""

import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from tests.tiny import tiny_config
from tood_jax.checkpoint.about_json import crc_of_json
from tood_jax.checkpoint.store import CheckpointError, CheckpointStore, open_checkpoint
from tood_jax.config import SplitConfig, to_dict
from tood_jax.config.conversion import ConfigError
from tood_jax.config.validation import stored_config
from tood_jax.data.errors import DataError
from tood_jax.data.formats.coco import load_coco
from tood_jax.data.image_io import decode_image, image_size
from tood_jax.evaluation.coco_ap import evaluate

# On damaged files TensorStore cancels futures of an event loop that Orbax has closed; Python tells it at random times.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SEED = int(os.environ.get("FUZZ_SEED", "2026"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))  # of each of the three
LONGEST = 20.0  # seconds that one case may take
MOST_MEMORY = 2e9  # bytes by which the process may grow
ODD = [
    None, True, False, 0, -1, 1, 3, 0.5, 1e308, -1e308, 2**63, 2**64, -(2**64), 10**30, "", "0", "3", "false", "a\0b",
    "../a.png", "/etc/passwd", "\x1b[2J", "\u202e", "\ud800", "x" * 5000, [], {}, [[]], [0] * 50, {"a": {"b": []}},
]  # fmt: skip
BOX = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0}
ANNOTATIONS = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.jpg", "width": 20, "height": 50},
    ],
    "annotations": [
        {"id": 1, **BOX},
        {"id": 2, **BOX, "image_id": 2, "category_id": 9, "segmentation": [[1, 1, 9, 1, 9, 30]]},
        {"id": 3, "image_id": 2, "category_id": 9, "segmentation": {"size": [50, 20], "counts": [100, 20, 880]}},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
}


def run(count: int, case: Callable[[random.Random], None]) -> None:
    """Run `count` cases, or as many as the budget allows; an error of a case names its seed."""
    end, memory = time.monotonic() + SECONDS, psutil.Process().memory_info().rss
    done = 0
    for number in range(count):
        began = time.monotonic()
        if began > end:
            break
        try:
            case(random.Random(f"{SEED}-{number}"))
        except Exception as error:
            raise AssertionError(f"case {number} of seed {SEED}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - began < LONGEST, f"case {number} of seed {SEED} took too long"
        assert psutil.Process().memory_info().rss - memory < MOST_MEMORY, f"case {number} of seed {SEED} took memory"
        done += 1
    print(f"{done} of {count} cases")
    assert done >= count / 10  # a slow machine gets no further; one that hangs does not get here


def check_sentence(error: Exception, file: object = "") -> None:
    """An error fits a terminal, and names the file."""
    assert str(error).isprintable()
    assert len(str(error)) < 5000
    assert str(file) in str(error)


def places(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the paths to all values of a JSON tree."""
    yield path
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def damage_tree(tree: dict, draw: random.Random) -> dict:
    """Return a copy in which one to four values are replaced, removed or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 4)):
        *path, last = draw.choice(list(places(tree))[1:])
        parent = tree
        for key in path:
            parent = parent[key]
        action = draw.choice(["replace", "replace", "remove", "repeat"])
        if action == "replace":
            parent[last] = copy.deepcopy(draw.choice(ODD))
        elif action == "remove":
            del parent[last]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        if not list(places(tree))[1:]:
            break
    return tree


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return a copy with some bytes changed, lost, repeated or cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        if not changed:
            break
        at = draw.randrange(len(changed))
        action = draw.choice(["flip", "flip", "set", "cut", "remove", "repeat", "zeros"])
        if action == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif action == "set":
            changed[at] = draw.choice([0, 0x7F, 0xFF, 0x22, 0x5B])
        elif action == "cut":
            del changed[at:]
        elif action == "remove":
            del changed[at : at + draw.randint(1, 64)]
        elif action == "repeat":
            changed[at:at] = changed[at : at + draw.randint(1, 64)] * draw.randint(1, 20)
        else:
            changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    return bytes(changed)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images of all kinds that are read."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    pixels = cv2.resize(pixels, (160, 120))
    for name in ("a.png", "b.jpg", "c.webp", "d.bmp", "e.tif"):
        cv2.imwrite(str(folder / name), pixels)
    cv2.imwrite(str(folder / "f.jpg"), pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    cv2.imwrite(str(folder / "g.png"), pixels.astype(np.uint16) * 256)
    cv2.imwrite(str(folder / "h.jpg"), pixels, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    return folder


def test_annotation_files(images, tmp_path):
    file = tmp_path / "annotations.json"

    def case(draw: random.Random) -> None:
        if draw.random() < 0.7:
            data = json.dumps(damage_tree(ANNOTATIONS, draw)).encode()
        else:
            data = damage_bytes(json.dumps(ANNOTATIONS).encode(), draw)
        file.write_bytes(data)
        try:
            dataset = load_coco(SplitConfig(images=str(images), annotations=str(file)))
        except DataError as error:
            check_sentence(error)
            return
        assert dataset.report.summary().isprintable()
        for record in dataset.images:
            assert np.isfinite(record.boxes).all()
            assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        if dataset.has_annotations:
            evaluate(dataset.ground_truth(), [], engine="pycocotools")

    run(300, case)


def test_images(images, tmp_path):
    originals = sorted(images.iterdir())

    def case(draw: random.Random) -> None:
        original = draw.choice(originals)
        file = tmp_path / f"damaged{original.suffix}"
        file.write_bytes(damage_bytes(original.read_bytes(), draw))
        for read in (decode_image, image_size):
            try:
                found = read(file)
            except DataError as error:
                check_sentence(error, file)
                continue
            if read is decode_image:
                assert found.dtype == np.uint8
                assert found.ndim == 3
                assert found.shape[2] == 3

    run(300, case)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run's folder of checkpoints with one small step."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    state = {"params": {"head": {"kernel": jnp.arange(512.0).reshape(64, 8)}}, "batch_stats": {"mean": jnp.ones(5)}}
    about = {
        "config": to_dict(tiny_config(Path("data"), Path("run"))),
        "classes": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "unlogged": [],
        "bad_steps": 0,
    }
    with CheckpointStore(folder, 1) as store:
        store.save(7, state, about, {"AP": 0.5})
    return folder


def damage_checkpoint(step_folder: Path, draw: random.Random) -> None:
    """Damage one file of a checkpoint, or the content of about.json under a right checksum."""
    about = step_folder / "about" / "about.json"
    if draw.random() < 0.5:
        record = json.loads(about.read_text())
        del record["crc32"]
        record = damage_tree(record, draw)
        about.write_text(json.dumps({**record, "crc32": crc_of_json(record)}))
        return
    file = draw.choice(sorted(path for path in step_folder.rglob("*") if path.is_file()))
    if draw.random() < 0.2:
        file.unlink()
    else:
        file.write_bytes(damage_bytes(file.read_bytes(), draw))


def test_checkpoints(checkpoint, tmp_path):
    whole = open_checkpoint(checkpoint).arrays("params", "batch_stats")

    def case(draw: random.Random) -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(checkpoint, tmp_path / "copy")
        damage_checkpoint(tmp_path / "copy" / "7", draw)
        try:
            opened = open_checkpoint(tmp_path / "copy", log=lambda text: None)
            if "config" in opened.about:
                stored_config(opened.about["config"], "copy")
            arrays = opened.arrays(*opened.groups)
        except (CheckpointError, ConfigError) as error:
            check_sentence(error)
            return
        for group in arrays.keys() & whole.keys():  # what is read without an error is what was written
            for ours, theirs in zip(_leaves(arrays[group]), _leaves(whole[group]), strict=False):
                assert ours.shape == theirs.shape
                assert np.array_equal(ours, theirs)

    run(100, case)


def _leaves(tree: object) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    return [np.asarray(tree)]
