"""The tracker for W&B logs all results, finds the API key, and never makes a run fail."""

import json
import logging
import os
import re
import string
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from matplotlib import pyplot

from flap.results import Report
from flap.results.tracking import JobInfo, NoTracking, Wandb, base, weights_and_biases
from flap.results.tracking.base import kept_id, legal_id
from flap.runtime.progress import progress
from tests.helpers.marks import quick

JOB = JobInfo("outputs/today/tiny", "tiny", tags=("WIFV", "AL-AM"))
KEY = "k" * 40  # a fake API key, as long as a real key of W&B
NOBODY = "http://127.0.0.1:9"  # an address of this machine at which no server listens


class NotedRun:
    """A fake run of W&B that records all calls."""

    offline = True
    url = None

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.id = options["id"]
        self.dir = f"{options['dir']}/wandb/run/files"
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[
            str, wandb.Artifact
        ] = {}  # artifacts by the first word of their names (report, dense or model)
        self.used: list[str] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, summary: str) -> None:
        assert (name, summary) == ("progress/*", "none")

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def log_artifact(self, artifact: wandb.Artifact) -> None:
        self.artifacts[artifact.name.partition("-")[0]] = artifact

    def _log_artifact(
        self, artifact: wandb.Artifact, is_user_created: bool, use_after_commit: bool
    ) -> None:
        self.log_artifact(artifact)
        self.used += [artifact.name.partition("-")[0]] * use_after_commit

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def series(self, name: str) -> list[Any]:
        return [values[name] for values in self.logged if name in values]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[NotedRun]:
    """Return a list that records all runs that the tracker begins in W&B."""
    begun: list[NotedRun] = []
    monkeypatch.setattr(
        wandb, "init", lambda **options: begun.append(NotedRun(options)) or begun[-1]
    )
    return begun


def start(run_dir: Path, options: Wandb | None = None, job: JobInfo = JOB, **config: Any) -> Any:
    return (options or Wandb(mode="offline")).start(config, run_dir, job)


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """Return the log messages of flap's trackers at this level, without those of W&B."""
    return [
        one.getMessage()
        for one in caplog.records
        if one.name.startswith("flap.results.tracking") and one.levelno == level
    ]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Set HOME to an empty folder, and W&B's address to NOBODY, so that no account is used."""
    path = tmp_path_factory.mktemp("home")
    # Stop W&B's service process before W&B's environment variables are removed, because one of
    # these variables says how to reach the service.
    wandb.teardown()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(path))
        patch.setenv("NETRC", str(path / ".netrc"))
        patch.setenv("WANDB_BASE_URL", NOBODY)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        yield path
        wandb.teardown()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Reset W&B before and after a test, because W&B reads its settings only once per process."""
    wandb.teardown()
    yield monkeypatch
    monkeypatch.undo()
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


@pytest.fixture
def run_dir(report: dict[str, Any], tmp_path: Path) -> Path:
    """Create the folder of a finished run that was not sent to a tracker yet."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "report.json").write_text(json.dumps(report))
    pyplot.imsave(path / "layers.png", [[0, 1]])
    return path


@pytest.fixture
def done(run_dir: Path) -> Report:
    return Report.load(run_dir / "report.json")


def test_a_run_is_named_and_configured(runs: list[NotedRun], tmp_path: Path) -> None:
    # The group that the user sets replaces the group that is named after the sweep.
    options = Wandb(mode="offline", tags=["mine", "WIFV"], group="own", project="other")
    with start(tmp_path, options, replace(JOB, group="sweep"), ratio=0.4):
        pass
    [run] = runs
    names = ("project", "name", "job_type", "group", "tags", "config", "resume", "reinit")
    assert {name: run.options[name] for name in names} == {
        "project": "other",
        "name": "tiny",
        "job_type": "run",
        "group": "own",
        "tags": ["WIFV", "AL-AM", "mine"],
        "config": {"ratio": 0.4},
        "resume": "allow",
        "reinit": "finish_previous",
    }
    assert run.id.startswith(f"{legal_id(JOB.id)}-") and run.options["settings"].console == "off"
    assert (run.summary, run.exit_code) == ({"folder": str(tmp_path)}, 0)


def test_the_picture_and_the_lineage_from_the_dense_model_to_the_checkpoint(
    runs: list[NotedRun], run_dir: Path, done: Report, model_dir: Path
) -> None:
    of_the_hub = replace(done, config=done.config | {"model": {"path": "mine/small"}})
    for report in (done, of_the_hub):
        with start(run_dir) as tracked:
            tracked.finish(report)
    run, other = runs
    assert list(run.artifacts) == ["report", "dense", "model"] and run.used == ["dense"]
    [picture] = run.series("picture")
    assert picture.format == "png" and run.summary["checkpoint"] == done.checkpoint
    # Each artifact refers to files by their paths, and contains no copies.
    for name, place in (
        ("dense", model_dir),
        ("model", Path(done.checkpoint or "")),
    ):
        entries = run.artifacts[name].manifest.entries.values()
        assert {entry.ref for entry in entries} == {path.as_uri() for path in place.iterdir()}
    [entry] = other.artifacts["dense"].manifest.entries.values()
    assert entry.ref == "https://huggingface.co/mine/small"


def test_progress_is_throttled(
    runs: list[NotedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # each reading of this clock is a tenth of a second later
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    with start(tmp_path):
        list(progress(range(25), "calibrate", lambda item: 7))
    list(progress(range(2), "after the run"))
    [run] = runs
    assert run.series("progress/calibrate/items") == [1, 11, 21, 25]
    assert run.series("progress/calibrate") == [1 / 25, 11 / 25, 21 / 25, 1.0]
    assert len(run.series("progress/calibrate/tokens_per_second")) == 4
    assert not run.logged[4:]


def test_each_job_is_a_run_of_its_own_and_started_again_the_same(
    runs: list[NotedRun], tmp_path: Path
) -> None:
    """If a run is repeated in the same folder, its results are added to the same run of W&B.

    If a run fails, its exit code is sent to W&B, and its error is still raised.
    """
    for i, error in enumerate((None, RuntimeError("out of memory"), KeyboardInterrupt(), None)):
        try:
            with start(tmp_path / str(i % 3), job=JobInfo(f"sweep/{i % 3}", f"job {i}")):
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt) as caught:
            assert caught is error
    assert [run.exit_code for run in runs] == [0, 1, 1, 0]
    assert len({run.id for run in runs}) == 3 and runs[0].id == runs[3].id


def test_a_study_is_one_run_of_the_group_with_its_table(
    runs: list[NotedRun], tmp_path: Path
) -> None:
    columns = ["metric", "ratio", "perplexity"]
    rows = [["WIFV", 0.2, 5.5], ["random", 0.2, None], ["IFV", "-", 6]]
    Wandb(mode="offline").log_study(tmp_path / "sweep", columns, rows)
    [run] = runs
    assert (run.options["job_type"], run.options["group"]) == ("study", "sweep")
    [table] = run.series("study")
    assert (table.columns, table.data) == (columns, rows)


def broken(*args: Any, **options: Any) -> None:
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    "broken_part", quick(2, ["init", "finish", "import", "log", "log_artifact", "summary"])
)
def test_whatever_fails_in_wandb_is_one_warning_and_nothing_else(
    broken_part: str,
    run_dir: Path,
    done: Report,
    caplog: pytest.LogCaptureFixture,
    session: pytest.MonkeyPatch,
) -> None:
    if broken_part == "import":
        session.setitem(sys.modules, "wandb", None)
    elif broken_part == "init":
        session.setattr(wandb, "init", broken)
    elif broken_part == "summary":
        session.setattr(base, "summary", broken)
    else:
        session.setattr(wandb.Run, broken_part, broken)
    Wandb(mode="offline").check()
    with start(run_dir) as tracked:
        list(progress(range(3), "calibrate"))
        tracked.finish(done)
    [warning] = said(caplog)
    cause = (
        "ModuleNotFoundError: import of wandb"
        if broken_part == "import"
        else "RuntimeError: no luck;"
    )
    assert warning.startswith(f"W&B: {cause}") and "\n" not in warning and str(run_dir) in warning


def test_an_unreachable_server_costs_the_timeout_and_the_run_is_recorded_offline(
    run_dir: Path,
    done: Report,
    caplog: pytest.LogCaptureFixture,
    session: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    session.setenv("WANDB_API_KEY", KEY)
    session.setattr(weights_and_biases, "INIT_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    with start(run_dir, Wandb(mode="online")) as tracked:
        tracked.finish(done)
    assert capfd.readouterr() == ("", "")
    [warning], [folder] = said(caplog), run_dir.glob("wandb/offline-run-*")
    assert "CommError" in warning and str(run_dir) in warning
    assert said(caplog, logging.INFO) == [
        f"W&B: recorded offline; send it with: wandb sync {folder}"
    ]


def test_wandb_is_silent_and_writes_into_the_runs_folder_alone(
    run_dir: Path,
    done: Report,
    home: Path,
    tmp_path: Path,
    session: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    session.chdir(work)
    session.setenv("TMPDIR", str(tmp_path / "tmp"))
    with start(run_dir) as tracked:
        print("the run's own line")
        tracked.finish(done)
    wandb.teardown()
    assert capfd.readouterr() == ("the run's own line\n", "")
    assert list(work.rglob("*")) == [] and list((tmp_path / "tmp").rglob("*")) == []
    assert [path for path in home.rglob("*") if "wandb" in str(path.relative_to(home))] == []
    assert not {"WANDB_SILENT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"} & set(os.environ)


@pytest.mark.parametrize(
    ("key", "problem"), [(None, "no W&B key is configured"), ("short", "WANDB_API_KEY invalid: .*")]
)
def test_online_without_a_valid_key_is_refused(
    key: str | None, problem: str, session: pytest.MonkeyPatch
) -> None:
    if key:
        session.setenv("WANDB_API_KEY", key)
    line = (
        rf"^tracking\.mode=online: {problem}; run `wandb login`, set WANDB_API_KEY, or take "
        r"tracking\.mode=offline$"
    )
    with pytest.raises(ValueError, match=line):
        Wandb(mode="online").check()


@pytest.mark.parametrize("place", ["environment", "netrc", "nowhere", "WANDB_MODE"])
def test_auto_is_online_with_a_key(
    place: str, tmp_path: Path, session: pytest.MonkeyPatch, runs: list[NotedRun]
) -> None:
    if place in ("environment", "WANDB_MODE"):
        session.setenv("WANDB_API_KEY", KEY)
    if place == "WANDB_MODE":
        session.setenv("WANDB_MODE", "offline")
    if place == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
        session.setenv("NETRC", str(tmp_path / "netrc"))
    Wandb().check()
    with start(tmp_path / "run", Wandb()):
        pass
    assert runs[0].options["mode"] == ("online" if place in ("environment", "netrc") else "offline")


def test_ids_are_legal_and_tell_names_apart_that_differ_in_a_forbidden_character() -> None:
    texts = [
        "a/b",
        "a:b",
        "a-b",
        "a b",
        "x" * 400 + "a" * 80,
        "y" * 400 + "a" * 80,
        "",
        string.punctuation + "é漢",
    ]
    assert len({legal_id(text) for text in texts}) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", legal_id(text)) for text in texts)
    assert legal_id("a/b") == legal_id("a/b") == "a-b-c14cddc0"


def test_a_folder_keeps_its_id_and_equal_names_elsewhere_have_another(tmp_path: Path) -> None:
    here = tmp_path / "here"
    there = tmp_path / "there"
    assert (
        kept_id(here, "outputs/today")
        == kept_id(here, "outputs/today")
        != kept_id(there, "outputs/today")
    )


def test_no_tracking_tells_nobody(done: Report, tmp_path: Path) -> None:
    before = list(tmp_path.iterdir())
    with NoTracking().start({}, tmp_path, JOB) as tracked:
        tracked.finish(done)
        # A report without the widths of layers must not raise an error.
        tracked.finish(replace(done, layers=[{}] * len(done.layers)))
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "live"}, "tracking.mode=live: expected one of auto, online, offline"),
        (
            {"tags": ["fine", "x" * 65]},
            f"tracking.tags={'x' * 65}: expected tags of 1 to 64 characters",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Wandb(**options).check()
