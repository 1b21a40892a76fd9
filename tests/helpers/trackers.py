"""Start MLflow's own server or a fake MLflow server on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

RUN = {
    "run_id": "1",
    "run_uuid": "1",
    "experiment_id": "1",
    "status": "RUNNING",
    "artifact_uri": "mlflow-artifacts:/1/1/artifacts",
    "lifecycle_stage": "active",
}
# The fake server's answer to every request. A client ignores the keys that it does not need.
MLFLOW_ANSWER = {
    "experiment": {"experiment_id": "1", "name": "flap", "lifecycle_stage": "active"},
    "experiment_id": "1",
    "run": {"info": RUN, "data": {}},
    "run_info": RUN,
}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start MLflow's own server for the duration of a `with` block, and yield its address.

    folder: where the server stores its data.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "log"
    with log.open("w") as said:
        server = subprocess.Popen(
            command, stdout=said, stderr=said, env=os.environ | quiet, start_new_session=True
        )
    try:
        _wait(server, uri, log)
        yield uri
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def _wait(server: "subprocess.Popen[bytes]", uri: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health"):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"MLflow's server does not answer: {log.read_text()[-2000:]}")


class FakeMLflow(ThreadingHTTPServer):
    """A fake server that answers MLflow's client, stores no runs, and records the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.requests: list[str] = []  # received requests with method, path, headers and body
        self.authorizations: set[str] = set()  # the Authorization headers, which hold the password

    @property
    def address(self) -> str:
        """The address of the server, with host and port."""
        return f"127.0.0.1:{self.server_port}"


class _Answering(BaseHTTPRequestHandler):
    server: FakeMLflow

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers)
        self.server.authorizations.add(headers.pop("Authorization", ""))
        self.server.requests.append(f"{self.command} {self.path}\n{headers}\n{body!r}")

        text = json.dumps(MLFLOW_ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def log_message(self, *given: object) -> None:
        """Print nothing."""


@contextmanager
def fake_mlflow() -> Iterator[FakeMLflow]:
    """Start a fake MLflow server on this machine for the duration of a `with` block."""
    with FakeMLflow() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
