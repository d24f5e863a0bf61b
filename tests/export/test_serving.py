"""The server of docs/deploy.md, with real requests."""

import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tood_jax import api

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve.py"


@pytest.fixture(scope="module")
def client(exported):
    patch = pytest.MonkeyPatch()
    patch.setenv("DETECTOR", str(exported))
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield TestClient(module.app)
    patch.undo()


def encoded(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def test_concurrent_requests_give_the_detections_of_their_images(client, exported):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (40, 60), (1, 1))] * 3
    detector = api.load(exported)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda image: client.post("/detect?threshold=0", content=encoded(image)), images))
    for image, reply in zip(images, replies, strict=True):
        assert reply.status_code == 200
        expected = detector(image).to_coco(0)
        assert [row["category_id"] for row in reply.json()] == [row["category_id"] for row in expected]
        found = [row["bbox"] for row in reply.json()]
        np.testing.assert_allclose(found, [row["bbox"] for row in expected], atol=1e-3)
        assert len(found) > 10


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        (b"", "", 400),
        (b"not an image", "", 400),
        (encoded(np.zeros((9, 9, 3), np.uint8))[:40], "", 400),
        (b"\0" * 10_000_001, "", 413),
        (encoded(np.zeros((5001, 5001, 3), np.uint8)), "", 413),
        (encoded(np.zeros((9, 9, 3), np.uint8)), "?threshold=7", 400),
        (encoded(np.zeros((9, 9, 3), np.uint8)), "?threshold=x", 422),
    ],
    ids=["empty", "text", "cut off", "many bytes", "many pixels", "threshold", "no number"],
)
def test_other_requests_are_refused(client, body, query, status):
    assert client.post(f"/detect{query}", content=body).status_code == status
