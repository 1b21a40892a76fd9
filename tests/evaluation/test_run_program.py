"""`run_program` runs a Python program in a separate process, and returns how it has ended.

A program passes, fails or times out. It can read files, but cannot change files, start processes or
use the network, and it has little memory.
"""

import os
import sys
import time
from pathlib import Path

import pytest

from flap.evaluation.run_program import run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the limits are those of POSIX")
SECONDS = 20  # seconds that a program may run; enough even on a busy machine


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 2",
        "import collections, json, math, random, re, typing\nassert math.sqrt(4) == 2",
        "def check(f):\n    assert f(2) == 4\n\ndef double(x):\n    return 2 * x\n\ncheck(double)",
        "print('x' * 10**6)",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\nassert A(1) == A(1)",
    ],
)
def test_a_correct_program_passes(program: str) -> None:
    assert run_program(program, SECONDS) == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 3",
        "def f(:",
        "raise SystemExit(0)\nassert False",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import ctypes\nctypes.string_at(0)",
    ],
)
def test_a_wrong_program_fails(program: str) -> None:
    assert run_program(program, SECONDS) == "failed"


@pytest.mark.parametrize("program", ["while True:\n    pass", "import time\ntime.sleep(60)"])
def test_an_endless_program_is_stopped(program: str) -> None:
    start = time.perf_counter()
    assert run_program(program, 1) == "timed out"
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="RLIMIT_AS limits the memory on Linux only; CI runs this test there",
)
def test_a_program_that_needs_much_memory_fails() -> None:
    assert run_program("x = bytearray(100 * 2**20)", SECONDS) == "passed"
    assert run_program("x = bytearray(3 * 2**30)", SECONDS) == "failed"


def test_a_program_can_read_files_and_change_none(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    assert run_program(f"assert open({str(kept)!r}).read() == 'mine'", SECONDS) == "passed"
    for program in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a').write('x')",
        f"import pathlib\npathlib.Path({str(kept)!r}).unlink()",
        f"import os\nos.rename({str(kept)!r}, 'there')",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"open({str(tmp_path / 'new.txt')!r}, 'w').write('x')",
        "open('here.txt', 'w').write('x')",
    ):
        assert run_program(program, SECONDS) == "failed", program
    assert kept.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=5)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=5)",
        "import socket\nsocket.socket().bind(('127.0.0.1', 0))",
    ],
)
def test_a_program_has_no_network(program: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        assert run_program(program.format(port=port), SECONDS) == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "program",
    [
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import os\nos.kill(os.getppid(), 0)",
    ],
)
def test_a_program_starts_and_ends_no_process(program: str) -> None:
    assert run_program(program, SECONDS) == "failed"


def test_a_program_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os\nassert 'HF_TOKEN' not in os.environ", SECONDS) == "passed"
