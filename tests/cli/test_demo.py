"""tood demo: the page in a real browser, and what happens without its packages.

The browser test needs the packages gradio and playwright, and Chromium (Debian: apt-get install chromium).
"""

import base64
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

import tood_jax
from tests.runs import ROOT, save_random_run
from tests.tiny import tiny_config
from tood_jax.cli import demo
from tood_jax.data.dataset import ClassInfo

CHROMIUM = shutil.which("chromium")
CLASSES = (ClassInfo(1, "disc"), ClassInfo(2, "<b>box</b>"))
THRESHOLD = 0.55
IMAGE = "img[src*='/file=']"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random weights that detects something in a picture of noise, picture.png beside it."""
    root = tmp_path_factory.mktemp("demo")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(root / "picture.png"), rng.integers(0, 256, (64, 48, 3), np.uint8))
    config = tiny_config(root, root / "run")
    save_random_run(
        replace(config, detect=replace(config.detect, score_threshold=0.001, max_detections=5)), CLASSES, rng
    )
    return root / "run"


@pytest.mark.parametrize(
    ("words", "message"), [([], "pip install 'tood_jax[demo]'"), (["--port=0"], "--port=0 must be")]
)
def test_errors_before_the_weights_are_read(run, monkeypatch, capsys, words, message):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        demo.main(["--checkpoint", str(run), *words])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_an_uploaded_picture_comes_back_with_boxes(run):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tood_jax.cli.main", "demo", "--checkpoint", str(run), f"--port={port}"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            open_page(page, f"http://127.0.0.1:{port}/")
            page.set_input_files("input[type=file]", str(run.parent / "picture.png"))
            page.wait_for_selector(IMAGE, timeout=60_000)
            page.get_by_label("number input for smallest score").fill(str(THRESHOLD))
            page.get_by_role("button", name="Submit").click()
            image = page.wait_for_selector(f"{IMAGE} >> nth=1", timeout=120_000)  # after the one that was uploaded
            shown = decode(page, image.get_attribute("src"))
            page.wait_for_function("document.body.innerText.includes('disc')", timeout=60_000)  # in the table
            words = page.inner_text("body").split()
            browser.close()
    finally:
        server.terminate()
        server.wait()
    expected = tood_jax.load(run)(run.parent / "picture.png", threshold=THRESHOLD)
    assert 0 < len(expected) < 5  # the smallest score of the page counts
    np.testing.assert_array_equal(shown, expected.plot())
    for name in ("disc", "<b>box</b>"):
        assert words.count(name) == list(expected.names).count(name)


def open_page(page, address):
    """Open a page of a server that is starting."""
    for attempt in range(60):
        try:
            page.goto(address, timeout=60_000)
            return
        except Exception:
            if attempt == 59:
                raise
            time.sleep(1)


def decode(page, source):
    """RGB pixels of an image of the page."""
    read = """async source => {
        const bytes = new Uint8Array(await (await fetch(source)).arrayBuffer());
        return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
    }"""
    data = base64.b64decode(page.evaluate(read, source))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
