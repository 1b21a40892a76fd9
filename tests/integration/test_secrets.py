"""Secrets do not appear in anything that a run writes to disk, prints, or sends to a tracker.

A tracker sends the results of a run to MLflow, to W&B, or to a class that the user has written.
"""

import gzip
import json
import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import quote

import pytest

from flap.results.study_files import command_of
from flap.results.tracking import JobInfo, NoTracking, TrackedRun
from flap.storage import read_json
from tests.helpers.trackers import FakeMLflow, fake_mlflow

Cli = Callable[..., "CompletedProcess[str]"]
# Each secret contains "s3cr3t". No kind of escaping changes this part, so the tests can find it.
RESERVED = "p@ss/s3cr3t:%2F"
QUOTES = "it's\"<s3cr3t>&"
VARIABLE = 'it\'s "t0p" s3cr3t: x'


@dataclass(frozen=True)
class Reading(NoTracking):
    """A tracker that records whether the run has the environment variable MINE."""

    password: str | None = None

    def open(self, config: dict[str, Any], job: JobInfo, run: TrackedRun) -> None:
        """Write a file that says whether MINE is set, and which config the tracker gets."""
        noted = {"is_set": os.environ.get("MINE") == VARIABLE, "config": config}
        (run.run_dir / "noted.json").write_text(json.dumps(noted))


@pytest.fixture
def server() -> Iterator[FakeMLflow]:
    with fake_mlflow() as running:
        yield running


def leaks(folder: Path, done: "CompletedProcess[str]", password: str = RESERVED) -> list[str]:
    """Return all places that contain a secret: files in a folder, file names and console output."""
    basic = b64encode(f"me:{password}".encode())
    contents = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    for path in folder.rglob("*"):
        contents[f"name of {path}"] = str(path).encode()
        if path.is_file():
            data = path.read_bytes()
            contents[str(path)] = gzip.decompress(data) if path.suffix == ".gz" else data
    return [name for name, content in contents.items() if b"s3cr3t" in content or basic in content]


def hydras(text: str) -> str:
    """Quote a text so that Hydra parses the text as one value."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def sweep_of(base: list[str], *others: str) -> list[str]:
    """Return the arguments of a sweep with a single run, which writes to the folder "sweep"."""
    return ["-m", *base, "ratio=0.4", "checkpoint.save=true", "hydra.sweep.dir=sweep", *others]


@pytest.mark.long
@pytest.mark.parametrize(
    ("password", "written"),
    [
        pytest.param(RESERVED, RESERVED, marks=pytest.mark.long),
        pytest.param(RESERVED, quote(RESERVED, safe=""), marks=pytest.mark.long),
        (QUOTES, QUOTES),
    ],
    ids=["as it is", "percent-encoded", "with quotes"],
)
def test_a_whole_sweep_tells_no_password(
    quick_flap: Cli,
    base: list[str],
    tmp_path: Path,
    server: FakeMLflow,
    password: str,
    written: str,
) -> None:
    uri = f"http://me:{written}@{server.address}"
    environment = f"+hydra.job.env_set.MINE={hydras(VARIABLE)}"
    done = quick_flap(
        *sweep_of(base, "tracking=mlflow", f"tracking.uri={hydras(uri)}", environment)
    )
    assert done.returncode == 0, done.stderr
    assert "warning: MLflow" not in done.stderr
    assert leaks(tmp_path, done, password) == []

    sent = "\n".join(server.requests)
    # Check that the run has sent data to the tracker, because a search for secrets in no data would
    # find nothing.
    assert "log-batch" in sent and "tracking.uri" in sent
    assert "s3cr3t" not in sent
    [header] = server.authorizations
    assert b64decode(header.removeprefix("Basic ")).decode() == f"me:{password}"


@pytest.mark.long
def test_the_page_shows_the_command_without_them(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    options = [
        f"tracking._target_={__name__}.Reading",
        "+hydra.job.env_set={MINE: s3cr3t-value}",
        f"+tracking.password={RESERVED}",
        "+hydra.job.env_set.OTHER='${oc.env:HOME}'",
    ]
    done = quick_flap(*sweep_of(base, *options))
    assert leaks(tmp_path, done) == [] and (tmp_path / "sweep" / "index.html").is_file()
    command = command_of(tmp_path / "sweep")
    assert "+hydra.job.env_set=***" in command and "+tracking.password=***" in command
    # HOME is not a secret, so this option stays readable.
    assert "'+hydra.job.env_set.OTHER='\"'\"'${oc.env:HOME}'\"'\"''" in command


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("submitit_local", marks=pytest.mark.long),
        pytest.param("joblib", marks=pytest.mark.long),
    ],
)
def test_the_job_has_its_environment_and_nobody_else(
    flap: Cli, base: list[str], tmp_path: Path, launcher: str
) -> None:
    options = [
        f"hydra/launcher={launcher}",
        f"tracking._target_={__name__}.Reading",
        f"+hydra.job.env_set.MINE={hydras(VARIABLE)}",
    ]
    done = flap(*sweep_of(base, *options))
    assert done.returncode == 0, done.stderr
    [noted] = (tmp_path / "sweep").glob("0_*/noted.json")
    assert read_json(noted)["is_set"]
    assert leaks(tmp_path, done) == []
    if launcher == "submitit_local":
        mode = (tmp_path / "sweep" / ".submitit").stat().st_mode
        assert stat.S_IMODE(mode) == 0o700


@pytest.mark.long
@pytest.mark.parametrize("place", ["config", pytest.param("environment", marks=pytest.mark.long)])
def test_a_server_that_is_away_is_named_without_the_password(
    quick_flap: Cli, base: list[str], tmp_path: Path, place: str
) -> None:
    uri = f"http://me:{RESERVED}@127.0.0.1:9"
    arguments = sweep_of(base, "tracking=mlflow")
    environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    if place == "config":
        arguments.append(f"tracking.uri={hydras(uri)}")
    else:
        environment["MLFLOW_TRACKING_URI"] = uri
    done = quick_flap(*arguments, **environment)
    assert "warning: MLflow: " in done.stderr and "127.0.0.1" in done.stderr
    assert leaks(tmp_path, done) == []


def test_errors_tell_no_secret(quick_flap: Cli, base: list[str], tmp_path: Path) -> None:
    """Error messages and tracebacks contain no secrets.

    Here, the secret is the token HF_TOKEN, which is also a part of the path of a missing model. The
    error message shows *** instead of the token.
    """
    token = "s3cr3t-token"
    options = [f"model.path=/nowhere/{token}", "ratio=0.4", "hydra.run.dir=run"]
    done = quick_flap(*base, *options, HF_TOKEN=token)
    assert done.returncode == 1 and "/nowhere/***" in done.stderr
    done = quick_flap(*base, *options, HF_TOKEN=token, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert leaks(tmp_path, done) == []


@pytest.mark.long
def test_hydras_own_messages_tell_no_secret(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    """If a run of a sweep fails, Hydra prints the run's overrides, in which flap hides the secrets.

    Here, the run fails because the config of the tracker has no key `password`.
    """
    for text in (RESERVED, QUOTES, VARIABLE):
        done = quick_flap(*sweep_of(base, f"+tracking.password={hydras(text)}"))
        assert done.returncode == 1 and "tracking.password=***" in done.stderr
        assert leaks(tmp_path, done) == []


@pytest.mark.long
def test_wandb_records_no_secret(quick_flap: Cli, base: list[str], tmp_path: Path) -> None:
    """W&B records the command line of the process. flap hides the secrets in the command line."""
    options = [
        "tracking=wandb",
        "tracking.mode=offline",
        f"+hydra.job.env_set.MINE={hydras(VARIABLE)}",
        "+hydra.job.env_set.SHORT=s3cr3t",
    ]
    done = quick_flap(*sweep_of(base, *options), WANDB_ERROR_REPORTING="false")
    assert [*tmp_path.glob("sweep/0_*/wandb/offline-run-*")]
    assert leaks(tmp_path, done) == []


def test_trivial_values_are_left_alone(quick_flap: Cli, base: list[str], tmp_path: Path) -> None:
    options = ["+hydra.job.env_set={A: '1', B: 'true', C: /tmp, D: tiny-llama}"]
    done = quick_flap(*base, *options, "ratio=0.4", "hydra.run.dir=run", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "***" not in done.stdout + done.stderr
    files = [*(tmp_path / "run").rglob("*")]
    texts = [path for path in files if path.suffix in (".yaml", ".json", ".md", ".log")]
    hidden = [path.name for path in texts if "***" in path.read_text()]
    assert hidden == ["hydra.yaml"]  # flap hides all values of env_set in hydra.yaml
