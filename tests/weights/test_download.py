"""Weights by name, by the real client huggingface_hub from a real server on this machine."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.hub_server import CERTIFICATE, HubServer, sha256
from tood_jax.weights import hub as hub_module
from tood_jax.weights.backbones import BACKBONES
from tood_jax.weights.download import download, is_remote, parse_remote
from tood_jax.weights.files import read_weights, write_weights
from tood_jax.weights.mapping import WeightsError

HTML = b"<!DOCTYPE html><html>Not here</html>"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The bytes of a small .safetensors file."""
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    write_weights(path, {"conv1.weight": np.arange(5000, dtype=np.float32)}, None, {})
    return path.read_bytes()


def fetch(name):
    """The download of a name, and what was logged."""
    lines = []
    return download(name, lines.append), "\n".join(lines)


def test_a_repository_gives_its_file_of_weights_with_commit_and_checksum(hub, weights):
    commit = hub.add("user/plain", {"model.safetensors": weights, "pytorch_model.bin": b"x", "config.json": b"{}"})
    fetched, line = fetch("hf://user/plain")
    assert fetched.path.read_bytes() == weights
    assert line == f"hf://user/plain: revision {commit}, model.safetensors, sha256 {sha256(weights)}"
    assert fetched.exact_name == f"hf://user/plain@{commit}/model.safetensors#sha256={sha256(weights)}"
    np.testing.assert_array_equal(read_weights(fetched.path).tensors["conv1.weight"], np.arange(5000))


def test_an_exact_name_is_read_from_the_cache_without_a_request(hub, weights):
    hub.add("user/exact", {"model.safetensors": weights})
    exact = fetch("hf://user/exact")[0].exact_name
    hub.requests.clear()
    assert fetch(exact)[0].path.read_bytes() == weights
    assert hub.requests == []


def test_a_branch_gives_its_newest_commit_and_a_commit_remains(hub, weights, tmp_path):
    first = hub.add("user/branch", {"a/net.safetensors": weights})
    fetch("hf://user/branch")
    write_weights(tmp_path / "y.safetensors", {"other": np.zeros(3, np.float32)}, None, {})
    hub.add("user/branch", {"a/net.safetensors": (tmp_path / "y.safetensors").read_bytes()})
    assert set(read_weights(fetch("hf://user/branch")[0].path).tensors) == {"other"}
    assert fetch(f"hf://user/branch@{first}/a/net.safetensors")[0].path.read_bytes() == weights
    assert fetch("hf://user/branch@main/a/net.safetensors")[0].path.read_bytes() != weights


def test_the_token_goes_to_the_hub_and_not_to_the_host_of_a_redirect(hub, weights, hub_token):
    hub.add("user/private", {"model.safetensors": weights}, private=True)
    assert fetch("hf://user/private")[0].path.read_bytes() == weights
    tokens = {path.split("/")[1]: has_token for _, path, has_token in hub.requests}
    assert tokens == {"api": True, "user": True, "cdn": False}


def test_a_broken_transfer_is_resumed(hub, weights):
    hub.add("user/breaks", {"model.safetensors": weights})
    hub.faults[f"/cdn/{sha256(weights)}"] = (1, 1000)
    assert fetch("hf://user/breaks")[0].path.read_bytes() == weights
    assert hub.count("GET", "/cdn/") == 2


def test_a_damaged_transfer_is_repeated_and_a_damaged_file_refused(hub, weights):
    """The Hub reports the checksum of large files."""
    damaged = weights[:-1] + b"\x01"
    hub.add("user/damaged", {"model.safetensors": weights})
    hub.objects[sha256(weights)] = damaged
    try:
        with pytest.raises(WeightsError, match=r"hf://user/damaged/model.safetensors: the transfer broke 3 times"):
            fetch("hf://user/damaged")
    finally:
        hub.objects[sha256(weights)] = weights
    assert hub.count("GET", "/cdn/") == 3
    assert fetch("hf://user/damaged")[0].path.read_bytes() == weights


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://user/none", "There is no repository user/none at http.*, or it is private: check the name, or log in"),
        ("hf://user/gated", r"user/gated is gated: accept its conditions at http.*/user/gated, and log in"),
        ("hf://user/several@v9", "user/several has no branch, tag or commit v9"),
        ("hf://user/several/no.pth", "user/several has no file no.pth at main; it has a.pth, b.pth"),
        ("hf://user/several", r"several files of weights: append one of /a.pth, /b.pth"),
        ("hf://user/nothing", "user/nothing at main has no file of weights .*; it has README.md, x.bin"),
        ("hf://user/nothing/x.bin", "must end in .pth, .pt or .safetensors"),
        ("hf://user", "must have the form hf://USER/REPO"),
        ("hf://user/several@..%2F..%2Fx/a.pth", "../../x is no name of a branch, tag or commit"),
        ("hf://user/outside", r"\.\./\.\./x\.pth"),
        ("hf://user/-a--b", "user/-a--b can't be used: "),
        (
            "hf://user/several/a.pth#sha256=" + 64 * "0",
            r"hf://user/several/a.pth is refused: its SHA-256 is \w+, not 0",
        ),
        ("hf://user/several#md5=0", "after # only sha256= and 64 hexadecimal digits"),
        ("ftp://host/x.pth", "only hf:// and https:// can"),
        ("http://host/x.pth", "is not encrypted"),
    ],
)
def test_what_is_wrong_is_one_sentence(hub, name, message):
    hub.add("user/gated", {"model.safetensors": b""}, gated=True)
    hub.add("user/several", {"a.pth": b"1", "b.pth": b"2"})
    hub.add("user/outside", {"../../x.pth": b""})
    hub.add("user/nothing", {"README.md": b"", "x.bin": b""})
    with pytest.raises(WeightsError, match=message) as error:
        fetch(name)
    assert "\n" not in str(error.value)


def test_without_a_connection_the_cache_is_used_or_a_sentence_is_raised(hub, weights):
    commit = hub.add("user/offline", {"model.safetensors": weights})
    fetch("hf://user/offline")
    hub.stop()
    try:
        fetched, line = fetch("hf://user/offline")
        with pytest.raises(WeightsError, match=r"can't be reached \(.*refused.*user/never is not in the cache"):
            fetch("hf://user/never")
    finally:
        hub.start(hub.port)
    assert fetched.path.read_bytes() == weights
    assert f"revision {commit}, model.safetensors, from the cache because there is no connection" in line


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_processes_of_one_machine_download_a_file_once(hub, weights, kind):
    """Threads stand for processes here: each of them opens the locked file."""
    content = weights + kind.encode()  # not in the cache yet
    hub.add("user/once", {"model.safetensors": content})
    hub.pages["/once.safetensors"] = content
    name = {"hub": "hf://user/once", "web": f"{hub.url}/once.safetensors#sha256={sha256(content)}"}[kind]
    with ThreadPoolExecutor(4) as pool:
        assert {fetched.path.read_bytes() for fetched, _ in pool.map(fetch, [name] * 4)} == {content}
    assert hub.count("GET", {"hub": "/cdn/", "web": "/once"}[kind]) == 1


def test_a_web_file_is_downloaded_once_and_checked(hub, weights):
    hub.pages |= {"/w/x.safetensors": weights, "/moved.safetensors": "/w/x.safetensors"}
    name = f"{hub.url}/moved.safetensors#sha256={sha256(weights)}"
    fetched, line = fetch(name)
    assert fetched.path.read_bytes() == weights
    assert line == f"{name}: downloaded, {len(weights):,} bytes, sha256 {sha256(weights)}"
    assert fetched.exact_name == name
    assert fetch(name)[1].startswith(f"{name}: from the cache {fetched.path}")
    assert hub.count("GET", "/w/") == 1
    with pytest.raises(WeightsError, match=f"is refused: its SHA-256 is {sha256(weights)}, not 1111"):
        fetch(f"{hub.url}/moved.safetensors#sha256={64 * '1'}")
    assert fetched.path.read_bytes() == weights


def test_a_broken_web_transfer_is_repeated_and_leaves_nothing(hub, weights, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.pages["/x.safetensors"] = weights
    name = f"{hub.url}/x.safetensors#sha256={sha256(weights)}"
    hub.faults["/x.safetensors"] = (3, 100)
    with pytest.raises(
        WeightsError, match=rf"broke 3 times \(100 of {len(weights):,} bytes arrived\): try again later"
    ):
        fetch(name)
    hub.faults["/x.safetensors"] = (2, 100)
    path = fetch(name)[0].path
    assert path.read_bytes() == weights
    assert sorted(path.parent.iterdir()) == [path, path.with_name(f"{path.name}.lock")]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (HTML, "is an HTML or XML page .*, not a file of weights"),
        (401, r"the server asks for a login \(status 401\)"),
        (404, r"there is no such file \(status 404\)"),
        (503, r"broke 3 times \(status 503\)"),
        ("http://127.0.0.1:1/x.pth", "can't be reached .*refused"),
    ],
)
def test_what_is_wrong_on_the_web_is_one_sentence(hub, page, message, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.pages["/x.pth"] = page
    with pytest.raises(WeightsError, match=message) as error:
        fetch(f"{hub.url}/x.pth#sha256={64 * '0'}")
    assert "\n" not in str(error.value)


def test_an_encrypted_address_needs_no_checksum_but_may_not_lead_to_an_unencrypted_one(hub, weights, monkeypatch):
    server = HubServer.__new__(HubServer)
    server.faults, server.requests = {}, []
    server.pages = {"/x.safetensors": weights, "/out.safetensors": f"{hub.url}/x.safetensors"}
    server.start(certificate=CERTIFICATE)
    hub.pages["/x.safetensors"] = weights
    try:
        with pytest.raises(WeightsError, match=r"can't be reached .*self-signed"):
            fetch(f"{server.url}/x.safetensors")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        assert fetch(f"{server.url}/x.safetensors?download=true")[0].path.read_bytes() == weights
        with pytest.raises(WeightsError, match="which is not encrypted: add #sha256="):
            fetch(f"{server.url}/out.safetensors")
    finally:
        server.stop()


def test_short_names_are_exact_unless_a_file_has_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, address in BACKBONES.items():
        remote = parse_remote(name)
        assert re.fullmatch(r"timm/\w+\.tv_in1k", remote.repo)
        assert remote.file == "model.safetensors"
        assert (remote.sha256 is None) == (remote.revision == "main") == (name == "resnet101"), address
    assert is_remote("resnet50")
    (tmp_path / "resnet50").mkdir()
    assert not is_remote("resnet50")
    assert not is_remote("resnet5")


def test_the_file_of_a_short_name_is_the_known_one(hub, weights):
    """A server that answers with other bytes under the known commit is noticed."""
    hub.add("timm/resnet18.tv_in1k", {"model.safetensors": weights})
    repo = hub.repos["timm/resnet18.tv_in1k"]
    repo["commits"][parse_remote("resnet18").revision] = repo["commits"][repo["refs"]["main"]]
    with pytest.raises(WeightsError, match=r"is refused: its SHA-256 is \w+, not 694f673d"):
        fetch("resnet18")
    commit = hub.add("timm/resnet101.tv_in1k", {"model.safetensors": weights})
    assert f"resnet101: revision {commit}, model.safetensors, sha256" in fetch("resnet101")[1]


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'huggingface_hub>=2,<3'"):
        hub_module.import_hub()
