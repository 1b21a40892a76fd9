"""A model hub on this machine: as much of its HTTP API as an upload in one commit needs, with LFS for large files."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_a_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The server and what it holds: the files of each repository, and the bytes of large ones by their SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """The endpoints: making a repository, listing it, checking a card, how and where to upload, and the commit."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def do_GET(self) -> None:
        repo = self.path.removeprefix("/api/models/").split("/revision/")[0].split("/tree/")[0].split("?")[0]
        files = self.server.repos.get(repo)
        if files is None:
            self.answer({"error": "Repository not found"}, 404)
        elif "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()])
        else:
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": repo, "sha": COMMIT, "private": repo in self.server.private, "siblings": siblings})

    def do_PUT(self) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_POST(self) -> None:
        content = self.body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid user token."}, 401)
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            modes = {name["path"]: "lfs" if name["size"] > 4096 else "regular" for name in json.loads(content)["files"]}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(content))
        elif "/commit/" in self.path:
            self.commit(content)
        else:
            self.answer({"error": f"no such endpoint: {self.path}"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, {})
        private = asked.get("private") or asked.get("visibility") == "private"  # by the version of the client
        if private and status == 200:
            self.server.private.add(repo)
        self.answer({"url": f"{self.server.address}/{repo}", "name": repo}, status)

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.server.address}/upload/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def commit(self, content: bytes) -> None:
        repo = self.path.removeprefix("/api/models/").split("/commit/")[0]
        files = self.server.repos[repo]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.answer(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}"}
        )


@contextmanager
def fake_hub() -> Iterator[Hub]:
    """Serve as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
