"""A local Hugging Face Hub for the tests of downloads and uploads."""

import importlib

import pytest

from tests.weights.hub_server import TOKEN, HubServer


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """A local Hub; huggingface_hub reads these variables when it is first imported."""
    server = HubServer()
    home = str(tmp_path_factory.mktemp("hub"))
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        assert server.url == importlib.import_module("huggingface_hub.constants").ENDPOINT
        yield server
    server.stop()


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch):
    """The local Hub with an empty cache of web downloads, and without the requests of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub_server.requests.clear()
    hub_server.faults.clear()
    return hub_server


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
