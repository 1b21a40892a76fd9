"""Weights & Biases: offline runs, read back from their own files, say what the report says, and cost a run nothing."""

import json
import logging
import os
import re
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from flap.config import build
from flap.results import Report
from flap.storage.progress import progress
from flap.tracking import JobInfo, NoTracking, Wandb, base, kept_id, legal_id, weights_and_biases
from tests.helpers.runs import composed
from tests.helpers.wandb_records import Recorded, recorded

JOB = JobInfo("outputs/today/tiny", "tiny", tags=("WIFV", "AL-AM"))
KEY = "k" * 40  # as long as W&B's own
NOBODY = "http://127.0.0.1:9"  # a port that nothing listens on


def start(run_dir: Path, options: Wandb | None = None, job: JobInfo = JOB, **config: Any) -> Any:
    return (options or Wandb(mode="offline")).start(config, run_dir, job)


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What the tracker logged; W&B's own logger writes into the run's folder and not to the console."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("flap.tracking") and one.levelno == level]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return said(caplog, logging.WARNING)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home, no key, no server: nothing here can reach the user's account."""
    path = tmp_path_factory.mktemp("home")
    wandb.teardown()  # its service is in the environment, which is as before at the end
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
    """For tests that change what W&B reads once a process, or break it: it forgets before and after."""
    wandb.teardown()
    yield monkeypatch
    monkeypatch.undo()
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, home: Path, run_tiny: Callable[..., Report]
) -> tuple[Path, Report, Recorded]:
    """A whole run of the pipeline on the tiny model, tracked as the command line tracks it."""
    folder = tmp_path_factory.mktemp("tracked")
    options = Wandb(mode="offline", tags=["mine", "WIFV"])
    with options.start({"ratio": 0.4, "model": {"name": "tiny"}, "eval": None}, folder, JOB) as tracked:
        report = run_tiny(folder, "use_cache=false")  # calibrated here, whatever other tests have left
        tracked.finish(report)
    return folder, report, recorded(folder)


@pytest.fixture
def run_dir(finished: tuple[Path, Report, Recorded], tmp_path: Path) -> Path:
    """The folder of a run that is written and not yet tracked."""
    path = tmp_path / "run"
    shutil.copytree(finished[0], path, ignore=shutil.ignore_patterns("wandb", "checkpoint"))
    return path


def test_a_run_is_named_and_configured(finished: tuple[Path, Report, Recorded]) -> None:
    run = finished[2].run
    assert (run.project, run.display_name, run.job_type, run.run_group) == ("flap", "tiny", "run", "")
    assert list(run.tags) == ["WIFV", "AL-AM", "mine"]
    assert {key: value for key, value in finished[2].config.items() if key != "_wandb"} == {
        "ratio": 0.4, "model": {"name": "tiny"}, "eval": None,
    }  # fmt: skip
    assert finished[2].exit_code == 0


def test_every_number_of_the_summary_is_the_reports(finished: tuple[Path, Report, Recorded]) -> None:
    folder, _, run = finished
    report = json.loads((folder / "report.json").read_text())
    sections = {
        name: report[name] for name in ("difference_stderr", "ratio", "parameters", "seconds", "peak_memory_bytes")
    }
    expected = {
        f"{section}/{name}": value
        for section, numbers in (report["evaluation"] | sections).items()
        for name, value in numbers.items()
    }
    assert {
        "dense/words.txt/perplexity@16",
        "pruned/words.txt/perplexity@16",
        "seconds/calibrate",
        "difference_stderr/words.txt/perplexity@16",
    } <= set(expected)
    assert {name: run.summary[name] for name in expected} == expected
    assert run.summary["statistics_cache"] == report["statistics_cache"]


def test_the_table_says_what_each_layer_kept(finished: tuple[Path, Report, Recorded]) -> None:
    _, report, run = finished
    table = run.table("layers")
    assert table["columns"] == [
        "layer", "query_heads_before", "kv_heads_before", "neurons_before", "query_heads", "kv_heads", "neurons",
    ]  # fmt: skip
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert [{key: row[key] for key in report.layers[0]} for row in rows] == report.layers
    assert [{key: row[f"{key}_before"] for key in report.layers[0]} for row in rows] == report.layers_before
    assert report.layers != report.layers_before


def test_the_picture_and_the_report_are_there_and_the_checkpoint_is_not(
    finished: tuple[Path, Report, Recorded],
) -> None:
    folder, _, run = finished
    [picture] = run.series("picture.path")
    assert (run.folder / "files" / picture).read_bytes() == (folder / "layers.png").read_bytes()
    [entry] = run.artifacts["report"].manifest.contents
    assert entry.path == "report.json"
    assert Path(entry.local_path).read_bytes() == (folder / "report.json").read_bytes()


def test_a_run_without_a_picture_has_its_report(finished: tuple[Path, Report, Recorded], run_dir: Path) -> None:
    (run_dir / "layers.png").unlink()
    with start(run_dir) as tracked:
        tracked.finish(finished[1])
    assert "report" in recorded(run_dir).artifacts


def test_the_lineage_leads_from_the_dense_model_to_the_checkpoint(
    finished: tuple[Path, Report, Recorded], model_dir: Path
) -> None:
    folder, report, run = finished
    dense, made = run.artifacts["dense"], run.artifacts["model"]
    assert dense.use_after_commit and not made.use_after_commit  # used by the run, made by it
    for artifact, place in ((dense, model_dir), (made, folder / "checkpoint")):  # references: no file is copied
        assert {entry.ref for entry in artifact.manifest.contents} == {path.as_uri() for path in place.iterdir()}
    assert (run.summary["folder"], run.summary["checkpoint"]) == (str(folder), report.checkpoint)


def test_a_run_without_a_checkpoint_has_no_lineage(finished: tuple[Path, Report, Recorded], run_dir: Path) -> None:
    with start(run_dir) as tracked:
        tracked.finish(replace(finished[1], checkpoint=None))
    assert not {"dense", "model"} & set(recorded(run_dir).artifacts)


def test_a_model_of_the_hub_is_named_by_its_page(finished: tuple[Path, Report, Recorded], run_dir: Path) -> None:
    config = finished[1].config | {"model": {"path": "mine/small"}}
    with start(run_dir) as tracked:
        tracked.finish(replace(finished[1], config=config))
    [entry] = recorded(run_dir).artifacts["dense"].manifest.contents
    assert entry.ref == "https://huggingface.co/mine/small"


def test_long_steps_leave_their_progress(finished: tuple[Path, Report, Recorded]) -> None:
    run = finished[2]
    for stage in ("calibrate", "perplexity"):
        shares = run.series(f"progress/{stage}")
        assert shares[-1] == 1.0 and all(0 < share <= 1 for share in shares)
        assert run.series(f"progress/{stage}/items")[-1] >= 1
    assert run.series("progress/calibrate/tokens_per_second")[-1] > 0
    assert [one.glob_name for one in run.of["metric"] if one.summary.none] == ["progress/*"]


def test_progress_is_throttled_and_its_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    # a tenth of a second an item
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: next(clock) / 10))
    with start(tmp_path):
        list(progress(range(25), "calibrate", lambda item: 7))
        list(progress(iter(range(3)), "unknown length"))
    run = recorded(tmp_path)
    assert run.series("progress/calibrate/items") == [1, 11, 21, 25]
    assert run.series("progress/calibrate") == [1 / 25, 11 / 25, 21 / 25, 1.0]
    assert len(run.series("progress/calibrate/tokens_per_second")) == 4
    assert run.series("progress/unknown length/items") == [1]
    assert run.series("progress/unknown length") == []


def test_nobody_listens_after_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start(tmp_path):
        pass
    list(progress(range(2), "calibrate"))
    assert recorded(tmp_path).history == [] and warnings(caplog) == []


def test_the_checkpoint_is_taken_over_where_that_is_asked_for(
    finished: tuple[Path, Report, Recorded], run_dir: Path
) -> None:
    report = finished[1]
    with start(run_dir, Wandb(mode="offline", log_checkpoint=True)) as tracked:
        tracked.finish(report)
    contents = recorded(run_dir).artifacts["model"].manifest.contents
    saved = {path.name: str(path) for path in Path(report.checkpoint or "").iterdir()}
    assert {entry.path: entry.local_path for entry in contents} == saved  # where it lies, not a copy
    assert "model.safetensors" in saved


def test_runs_of_one_process_are_runs_of_their_own(tmp_path: Path) -> None:
    """Also after one that failed: it has its exit code, its error passes, and the next one does not continue it."""
    for i, error in enumerate((None, RuntimeError("out of memory"), KeyboardInterrupt(), None)):
        job = JobInfo(f"sweep/{i}", f"job {i}", group="sweep", job_type="sweep")
        try:
            with start(tmp_path / str(i), job=job, number=i):
                if error:
                    raise error
        except (RuntimeError, KeyboardInterrupt) as caught:
            assert caught is error
    runs = [recorded(tmp_path / str(i)) for i in range(4)]
    assert [run.config["number"] for run in runs] == [0, 1, 2, 3]
    assert [run.run.display_name for run in runs] == ["job 0", "job 1", "job 2", "job 3"]
    assert {(run.run.run_group, run.run.job_type) for run in runs} == {("sweep", "sweep")}
    assert len({run.run.run_id for run in runs}) == 4
    assert [run.exit_code for run in runs] == [0, 1, 1, 0]


def test_a_run_that_was_left_open_is_not_continued(tmp_path: Path) -> None:
    wandb.init(mode="offline", dir=tmp_path / "left", config={"left": True}, settings=wandb.Settings(silent=True))
    with start(tmp_path / "ours", number=1):
        pass
    run = recorded(tmp_path / "ours")
    assert set(run.config) == {"_wandb", "number"}
    assert recorded(tmp_path / "left").run.run_id != run.run.run_id


def test_a_job_that_is_started_again_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options) or init(**options))
    for _ in ("first", "again"):
        with start(tmp_path):
            pass
    first, again = (one["id"] for one in asked)
    assert first == again and first.startswith(f"{legal_id(JOB.id)}-")
    assert [(one["resume"], one["settings"].console) for one in asked] == [("allow", "off")] * 2


def test_the_option_group_wins_over_the_sweeps_folder(tmp_path: Path) -> None:
    with start(tmp_path, Wandb(mode="offline", group="mine", project="other"), JobInfo("a", "a", group="sweep")):
        pass
    run = recorded(tmp_path).run
    assert (run.run_group, run.project) == ("mine", "other")


def test_a_study_is_one_run_of_the_group_with_its_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns, rows = ["metric", "ratio", "perplexity"], [["WIFV", 0.2, 5.5], ["random", 0.2, None], ["IFV", "-", 6]]
    Wandb(mode="offline").log_study(tmp_path / "sweep", columns, rows)
    run = recorded(tmp_path / "sweep")
    assert (run.run.job_type, run.run.run_group) == ("study", "sweep")
    assert (run.table("study")["columns"], run.table("study")["data"]) == (columns, rows)
    assert warnings(caplog) == []
    NoTracking().log_study(tmp_path / "quiet", columns, rows)
    assert not (tmp_path / "quiet").exists()


def broken(*args: Any, **options: Any) -> None:
    raise RuntimeError("no\nluck")


@pytest.mark.parametrize("broken_part", ["import", "init", "define_metric", "log", "log_artifact", "finish", "summary"])
def test_whatever_fails_in_wandb_is_one_warning_and_nothing_else(
    broken_part: str,
    finished: tuple[Path, Report, Recorded],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
    session: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
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
        tracked.finish(finished[1])
    [warning] = warnings(caplog)
    cause = "ModuleNotFoundError: import of wandb" if broken_part == "import" else "RuntimeError: no luck;"
    assert warning.startswith(f"W&B: {cause}") and "\n" not in warning
    assert str(run_dir) in warning
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before


def test_the_runs_own_error_passes_where_wandb_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, session: pytest.MonkeyPatch
) -> None:
    session.setattr(wandb.Run, "finish", broken)
    with pytest.raises(ValueError, match="ratio"), start(tmp_path):
        raise ValueError("ratio=2")
    assert len(warnings(caplog)) == 1


def test_an_unreachable_server_costs_the_timeout_and_the_run_is_recorded_offline(
    finished: tuple[Path, Report, Recorded],
    run_dir: Path,
    caplog: pytest.LogCaptureFixture,
    session: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    session.setenv("WANDB_API_KEY", KEY)
    session.setattr(weights_and_biases, "INIT_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    with start(run_dir, Wandb(mode="online"), number=1) as tracked:
        tracked.finish(finished[1])
    assert capfd.readouterr() == ("", "")
    [warning] = warnings(caplog)
    assert "CommError" in warning and str(run_dir) in warning
    run = recorded(run_dir)
    assert (run.config["number"], run.exit_code) == (1, 0)
    assert run.summary["ratio/requested"] == 0.4
    assert said(caplog, logging.INFO) == [f"W&B: recorded offline; send it with: wandb sync {run.folder}"]


def test_online_without_a_key_is_refused(session: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as caught:
        Wandb(mode="online").check()
    assert str(caught.value) == (
        "tracking.mode=online: no W&B key is configured; run `wandb login`, set WANDB_API_KEY, or take "
        "tracking.mode=offline"
    )


def test_a_run_that_could_not_be_finished_hides_no_key(tmp_path: Path, session: pytest.MonkeyPatch) -> None:
    session.setenv("WANDB_API_KEY", KEY)
    session.setattr(wandb.Run, "finish", broken)
    with start(tmp_path):
        pass
    assert wandb.run is not None
    Wandb(mode="online").check()


def test_online_with_a_malformed_key_is_refused(session: pytest.MonkeyPatch) -> None:
    session.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ValueError, match=r"^tracking\.mode=online: WANDB_API_KEY invalid: .*tracking\.mode=offline$"):
        Wandb(mode="online").check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "live"}, "tracking.mode=live: expected one of auto, online, offline"),
        ({"tags": ["fine", "x" * 65]}, f"tracking.tags={'x' * 65}: expected tags of 1 to 64 characters"),
        ({"tags": [""]}, "tracking.tags=: expected tags of 1 to 64 characters"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Wandb(**options).check()
    assert str(caught.value) == message


@pytest.mark.parametrize("place", ["environment", "netrc", "nowhere", "WANDB_MODE"])
def test_auto_is_online_where_a_key_is_configured(
    place: str, home: Path, tmp_path: Path, session: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if place in ("environment", "WANDB_MODE"):
        session.setenv("WANDB_API_KEY", KEY)
    if place == "WANDB_MODE":
        session.setenv("WANDB_MODE", "offline")
    if place == "netrc":
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
        session.setenv("NETRC", str(tmp_path / "netrc"))
    asked: list[str] = []
    init = wandb.init
    session.setattr(wandb, "init", lambda **o: asked.append(o["mode"]) or init(**(o | {"mode": "offline"})))
    options = Wandb()
    options.check()
    with start(tmp_path / "my run", options):
        pass
    assert asked == ["online" if place in ("environment", "netrc") else "offline"]
    assert [path for path in home.rglob("*") if "wandb" in str(path.relative_to(home))] == []
    folder = recorded(tmp_path / "my run").folder
    assert warnings(caplog) == []
    assert said(caplog, logging.INFO) == [f"W&B: recorded offline; send it with: wandb sync '{folder}'"]


NASTY = string.punctuation + string.whitespace + "é漢"


@pytest.mark.parametrize("text", ["plain_1.0", NASTY, f" {NASTY} ", "", "x" * 500, "../../etc", "a/b=1,c"])
def test_ids_are_legal_whatever_the_job_is_called(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", legal_id(text))
    job = JobInfo(text, text[:100], group=text[:100] or None)
    with start(tmp_path, job=job) as tracked:
        tracked.log_table("layers", ["a"], [[1]])
    run = recorded(tmp_path)
    assert run.run.run_id.startswith(f"{legal_id(text)}-") and run.run.display_name == text[:100]
    assert run.table("layers")["data"] == [[1]]
    assert warnings(caplog) == []


def test_ids_tell_names_apart_that_differ_in_a_forbidden_character() -> None:
    texts = ["a/b", "a:b", "a-b", "a b", "x" * 400 + "a" * 80, "y" * 400 + "a" * 80]
    assert len({legal_id(text) for text in texts}) == len(texts)
    assert legal_id("a/b") == legal_id("a/b") == "a-b-c14cddc0"


def test_a_folder_keeps_its_id_and_equal_names_elsewhere_have_another(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert kept_id(here, "outputs/today") == kept_id(here, "outputs/today") != kept_id(there, "outputs/today")


def test_wandb_is_silent_and_writes_into_the_runs_folder_alone(
    finished: tuple[Path, Report, Recorded],
    run_dir: Path,
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
        tracked.finish(finished[1])
    wandb.teardown()
    assert capfd.readouterr() == ("the run's own line\n", "")
    assert list(work.rglob("*")) == [] and list((tmp_path / "tmp").rglob("*")) == []
    assert [path for path in home.rglob("*") if "wandb" in str(path.relative_to(home))] == []
    assert not {"WANDB_SILENT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"} & set(os.environ)
    assert not {"output", "output_raw"} & set(recorded(run_dir).of)


def test_the_environments_own_folders_win(tmp_path: Path, session: pytest.MonkeyPatch) -> None:
    session.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    with start(tmp_path / "run") as tracked:
        tracked.log_table("layers", ["a"], [[1]])
    assert any(path.is_file() for path in (tmp_path / "data").rglob("*"))


def test_no_tracking_tells_nobody(finished: tuple[Path, Report, Recorded], tmp_path: Path) -> None:
    NoTracking().check()
    with NoTracking().start({}, tmp_path, JOB) as tracked:
        tracked.finish(finished[1])
        tracked.log_table("layers", ["a"], [[1]])
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_lacks_a_width_ends_no_run(finished: tuple[Path, Report, Recorded], tmp_path: Path) -> None:
    with NoTracking().start({}, tmp_path, JOB) as tracked:
        tracked.finish(replace(finished[1], layers=[{}] * len(finished[1].layers)))


def test_the_choices_build() -> None:
    assert build("tracking", composed().tracking) == NoTracking()
    chosen = composed("tracking=wandb", "tracking.mode=offline", "tracking.tags=[a,b]", "tracking.group=g").tracking
    assert build("tracking", chosen) == Wandb(mode="offline", tags=["a", "b"], group="g")
    assert build("tracking", composed("tracking=wandb").tracking) == Wandb()
    with pytest.raises(ValueError, match=r"^tracking\.log_checkpoint=perhaps: "):
        build("tracking", composed("tracking=wandb", "tracking.log_checkpoint=perhaps").tracking)
