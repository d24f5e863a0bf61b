"""A local server with the endpoints of the Hugging Face Hub that huggingface_hub calls, and a plain file server.

It keeps repositories in memory. Large files are in LFS: their address redirects to another host name (localhost for
127.0.0.1), as on the Hub, and they are uploaded by the LFS protocol (HF_HUB_DISABLE_XET=1).
"""

import base64
import hashlib
import json
import re
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_secret"
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # self-signed, of 127.0.0.1 and localhost, with its key


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class HubServer:
    """Repositories by name, and what happened."""

    def __init__(self):
        self.repos = {}  # name: {"private", "gated", "refs": {branch: commit}, "commits": {commit: {file: bytes}}}
        self.objects = {}  # LFS: SHA-256 to bytes
        self.pages = {}  # of the file server: path to bytes, a status, or the address of a redirect
        self.faults = {}  # path of a download: how often it breaks, and after how many bytes
        self.requests = []  # (method, path, whether it had a token)
        self.after_listing = lambda: None  # called after a repository was listed
        self.start()

    def start(self, port=0, certificate=None):
        self.http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self.http.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def add(self, repo, files, branch="main", **options):
        """Commit files, and return the commit."""
        known = self.repos.setdefault(repo, {"private": False, "gated": False, "refs": {}, "commits": {}})
        known.update(options)
        content = {**known["commits"].get(known["refs"].get(branch), {}), **files}
        commit = hashlib.sha1(repr((repo, branch, sorted(content.items()))).encode()).hexdigest()
        known["refs"][branch] = commit
        known["commits"][commit] = content
        self.objects |= {sha256(data): data for data in files.values()}
        return commit

    def count(self, method, part):
        return sum(part in path for verb, path, _ in self.requests if verb == method)


def is_large(name):
    return name.endswith((".safetensors", ".pth", ".bin"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for each request, so that a stopped server answers none

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        path = urllib.parse.urlsplit(self.path).path
        self.hub.requests.append((self.command, path, "Authorization" in self.headers))
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(*map(urllib.parse.unquote, match.groups()))
        return self.send(404)

    def send(self, status, data=b"", **headers):
        data = json.dumps(data).encode() if isinstance(data, (dict, list)) else data
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, repo, revision):
        """The commit of a revision, or None after an error was sent."""
        known = self.hub.repos.get(repo)
        if known is None or (known["private"] and not self.has_token):  # the Hub does not tell them apart
            return self.send(404 if self.has_token else 401, X_Error_Code="RepoNotFound")
        if known["gated"] and not self.has_token and self.command in ("GET", "HEAD"):
            return self.send(401, X_Error_Code="GatedRepo")
        commit = known["refs"].get(revision, revision)
        if commit not in known["commits"]:
            return self.send(404, X_Error_Code="RevisionNotFound")
        return commit

    def info(self, repo, revision="main"):
        if commit := self.find(repo, revision):
            known = self.hub.repos[repo]
            siblings = []
            for name, data in known["commits"][commit].items():
                lfs = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134}} if is_large(name) else {}
                siblings.append({"rfilename": name, "size": len(data), "blobId": "0" * 40, **lfs})
            self.send(200, {"id": repo, "sha": commit, "private": known["private"], "siblings": siblings})
            self.hub.after_listing()

    def resolve(self, repo, revision, name):
        commit = self.find(repo, revision)
        if commit is None:
            return
        data = self.hub.repos[repo]["commits"][commit].get(name)
        if data is None:
            self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        elif is_large(name):
            location = f"http://localhost:{self.hub.port}/cdn/{sha256(data)}"
            linked = {"X_Linked_Etag": f'"{sha256(data)}"', "X_Linked_Size": str(len(data))}
            self.send(302, Location=location, X_Repo_Commit=commit, **linked)
        else:
            etag = hashlib.sha1(data).hexdigest()
            self.send(200, data, ETag=f'"{etag}"', X_Repo_Commit=commit)

    def cdn(self, oid):
        self.transfer(f"/cdn/{oid}", self.hub.objects[oid])

    def page(self, path):
        content = self.hub.pages.get(path, 404)
        if isinstance(content, str):
            self.send(302, Location=content)
        elif isinstance(content, int):
            self.send(content)
        else:
            self.transfer(path, content)

    def transfer(self, path, data):
        """Send a file, or the range that was asked for; break as `faults` demands."""
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        data = data[int(start[1]) :] if start else data
        times, kept = self.hub.faults.get(path, (0, 0))
        if not times or self.command == "HEAD":
            return self.send(206 if start else 200, data)
        self.hub.faults[path] = times - 1, kept
        self.send(206 if start else 200, data[:kept], Content_Length=str(len(data)))
        self.close_connection = True

    def create(self):
        values = json.loads(self.body)
        repo = f"{values['organization']}/{values['name']}"
        if not self.has_token:
            self.send(401, {"error": "Invalid username or password."})
        elif repo in self.hub.repos:
            self.send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        else:
            private = values.get("private", False) or values.get("visibility") == "private"
            self.hub.add(repo, {".gitattributes": b"*.safetensors filter=lfs"}, private=private)
            self.send(200, {"url": f"{self.hub.url}/{repo}"})

    def branch(self, repo, name):
        known = self.hub.repos[repo]
        if name in known["refs"]:
            return self.send(409, {"error": "Reference already exists"})
        known["refs"][name] = known["refs"]["main"]
        return self.send(200, {})

    def preupload(self, repo, revision):
        files = json.loads(self.body)["files"]
        modes = [
            {"path": one["path"], "uploadMode": "lfs" if is_large(one["path"]) else "regular", "shouldIgnore": False}
            for one in files
        ]
        self.send(200, {"files": modes})

    def lfs_batch(self, repo):
        href = f"{self.hub.url}/lfs/"
        objects = [
            {**one, "actions": {"upload": {"href": href + one["oid"]}, "verify": {"href": f"{href}verify"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.hub.faults.get("/lfs"):
            return self.send(403)
        assert sha256(self.body) == oid
        self.hub.objects[oid] = self.body
        return self.send(200)

    def lfs_verify(self):
        values = json.loads(self.body)
        self.send(200 if len(self.hub.objects.get(values["oid"], b"")) == values["size"] else 404, {})

    def commit(self, repo, revision):
        files = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.add(repo, files, branch=revision)
        self.send(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "hookOutput": ""})

    def validate_yaml(self):
        self.send(200, {"errors": [], "warnings": []})


_REPO = r"([^/]+/[^/]+)"
_ROUTES = [
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate_yaml"),
    (rf"/api/models/{_REPO}", "info"),
    (rf"/api/models/{_REPO}/revision/([^/]+)", "info"),
    (rf"/api/models/{_REPO}/branch/([^/]+)", "branch"),
    (rf"/api/models/{_REPO}/preupload/([^/]+)", "preupload"),
    (rf"/api/models/{_REPO}/commit/([^/]+)", "commit"),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"/lfs/verify", "lfs_verify"),
    (r"/lfs/(\w+)", "lfs_put"),
    (r"/cdn/(\w+)", "cdn"),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
    (r"(/.*)", "page"),
]
