"""The server of a study on the loopback address, for `python -m flap.study --serve`; it only reads.

Every user of a machine reaches its loopback address. So all that is served lies below a random token, which only the
printed address has.
"""

import errno
import mimetypes
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os.path import commonpath
from pathlib import Path
from posixpath import normpath
from secrets import compare_digest, token_hex
from threading import Lock
from urllib.parse import unquote, urlsplit

from flap.evaluation.result_files import RESULTS
from flap.results.plots import Plot, draw
from flap.results.study_files import files
from flap.results.sweep_folders import read_study
from flap.storage.progress import PROGRESS
from flap.storage.status import STATUS

LOOPBACK = "127.0.0.1"
RESULT_FILES = (STATUS, "report.json")
Stamps = tuple[tuple[str, int], ...]


def serve(sweeps: list[Path], port: int) -> None:
    """Serve the page of these sweeps until the user interrupts, and print its address. Raises: see `server`."""
    with server(sweeps, port) as serving, suppress(KeyboardInterrupt):
        print(f"{serving.address} (Ctrl+C ends it)", flush=True)
        serving.serve_forever()


def server(sweeps: list[Path], port: int) -> "Server":
    """Return the server of the page of these sweeps; port 0: any free one.

    Raises:
        ValueError: a folder cannot be read, or the port cannot be had.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port={port}: expected 0 to {2**16 - 1}")
    try:
        return Server(sweeps, port)
    except OSError as error:
        if error.filename or error.errno not in (errno.EADDRINUSE, errno.EACCES):  # of a file, or another one
            raise
        why = "in use" if error.errno == errno.EADDRINUSE else "not allowed"
        raise ValueError(f"--port={port}: {why}; expected a free port of {LOOPBACK}, or 0 for any") from None


class Server(ThreadingHTTPServer):
    """Serves sweeps that may still run to whoever knows the address: the page and its files, made anew on changes."""

    def __init__(self, sweeps: Sequence[Path], port: int) -> None:
        self.sweeps, self.root, self.version = sweeps, f"/{token_hex(16)}", ""
        self.contents: dict[str, bytes | Path] = {}  # by address, from memory or from the runs' folders
        self._drawn: tuple[Stamps, list[Plot]] = ((), [])
        self._lock = Lock()
        self.update()
        super().__init__((LOOPBACK, port), Handler)

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}{self.root}/"

    def update(self) -> None:
        """Read the sweeps again if their files have changed.

        Raises:
            ValueError: a folder cannot be read (see `read_study`); what was served before stays.
        """
        with self._lock:
            version = str(hash(self._stamps(*RESULT_FILES, RESULTS, PROGRESS)))
            if version != self.version:
                self.contents = self._made(version)
                self.version = version

    def _stamps(self, *names: str) -> Stamps:
        """Return when the runs' files of these names were written."""
        found = (path for sweep in self.sweeps for name in names for path in sorted(sweep.glob(f"*/{name}")))
        return tuple((str(path), stamp) for path in found if (stamp := _stamp(path)))

    def _made(self, version: str) -> dict[str, bytes | Path]:
        above = Path(commonpath([sweep.resolve() for sweep in self.sweeps]))  # no link leaves what is served
        study = read_study(*(sweep.resolve() for sweep in self.sweeps), into=above, waiting=True)
        stamps = self._stamps(*RESULT_FILES)
        if stamps != self._drawn[0]:  # drawing takes seconds, and progress changes every second
            self._drawn = stamps, draw(study)
        made: dict[str, bytes | Path] = {"/version": version.encode()}
        for name, content in files(study, self._drawn[1], version).items():
            made[f"/{name.removesuffix('index.html')}"] = content
        linked = (f"{run.folder}/{name}" for run in study.runs for name in run.files)
        return made | {normpath(f"/{file}"): study.folder / file for file in linked}


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # removed since it was listed
        return 0


class Handler(BaseHTTPRequestHandler):
    """Answers GET with what the server has, and everything else with an error."""

    server: Server

    def do_GET(self) -> None:
        """Answer with the page, or with a file that it links to."""
        root, path = self.server.root, unquote(urlsplit(self.path).path)
        host = (self.headers["Host"] or "").partition(":")[0]  # no port where that is 80
        named = host in (LOOPBACK, "localhost")  # not as a site whose name was resolved to this machine
        if not named or not compare_digest(path[: len(root)].encode(), root.encode()):
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        address = path[len(root) :]
        if address in ("/", "/version"):
            with suppress(ValueError, OSError):  # what is being replaced: the next request finds it whole
                self.server.update()
        content = self.server.contents.get(address)
        if content is None or (isinstance(content, Path) and not content.is_file()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._send(address, content.read_bytes() if isinstance(content, Path) else content)

    def _send(self, address: str, body: bytes) -> None:
        kind = "text/html" if address == "/" else mimetypes.guess_type(address)[0] or "text/plain"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        """Print nothing: the page asks every two seconds."""
