"""If the command of a run is repeated, flap computes only the results that are missing.

The file status.json in the folder of a run says whether the run has finished.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from torch import Tensor

from flap import cli, pipeline
from flap.data import Batch
from flap.evaluation import perplexity
from flap.models import PlacedModel
from flap.pipeline import run
from flap.results import Report
from flap.runs.sweeps.callbacks import failures
from flap.storage.status import read_state, run_folder, write_status
from tests.cases import tiny_model
from tests.helpers.forked import command_line, forked
from tests.helpers.runs import composed, tiny

NUMBERS = {
    f"words.txt/{kind}@{seq_len}" for kind in ("perplexity", "bits_per_byte") for seq_len in (8, 16)
}
Cli = Callable[..., "CompletedProcess[str]"]


def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Return a list to which flap adds the window length of each perplexity that it measures.

    fail_at: the number of the measurement that raises KeyboardInterrupt, counted from 1.
    """
    measured: list[int] = []
    original = perplexity.window_losses

    def spy(model: PlacedModel, windows: Batch, batch_size: int) -> Tensor:
        if len(measured) + 1 == fail_at:
            raise KeyboardInterrupt
        measured.append(windows.tokens_NT.shape[1])
        return original(model, windows, batch_size)

    monkeypatch.setattr(perplexity, "window_losses", spy)
    return measured


def test_a_killed_run_goes_on_after_its_task(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an interrupted command is repeated, the run continues with the interrupted measurement.

    After the run has finished, the same command repeats no measurement, even without the cache.
    With resume=false, the command repeats all measurements.
    """
    arguments = (*base, "eval.perplexity.seq_len=[8,16]")
    undisturbed = run(
        composed(*arguments, f"cache_dir={tmp_path / 'c1'}"), tmp_path / "undisturbed"
    )
    config = composed(*arguments, f"cache_dir={tmp_path / 'c2'}")
    counted(monkeypatch, fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert len(json.loads((tmp_path / "run" / "evaluation.json").read_text())) == 3
    assert not (tmp_path / "run" / "report.json").exists()
    monkeypatch.undo()
    measured = counted(monkeypatch)
    report = run(config, tmp_path / "run")
    run(composed(*arguments, "use_cache=false"), tmp_path / "run")
    assert measured == [16]
    run(composed(*arguments, "use_cache=false", "resume=false"), tmp_path / "run")
    assert len(measured) == 1 + 4
    assert report.evaluation == undisturbed.evaluation
    assert report.difference_stderr == undisturbed.difference_stderr
    assert set(report.difference_stderr) == NUMBERS
    assert report.layers == undisturbed.layers


def test_dense_scores_are_measured_once(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = counted(monkeypatch)
    arguments = (*base, f"cache_dir={tmp_path / 'cache'}", "checkpoint.save=false")
    reports = [
        run(composed(*arguments, f"ratio={ratio}"), tmp_path / ratio)
        for ratio in ("0.2", "0.4", "0.6")
    ]
    assert len(measured) == 1 + 3
    assert len({one.evaluation["dense"]["words.txt/perplexity@16"] for one in reports}) == 1
    errors = [one.difference_stderr["words.txt/perplexity@16"] for one in reports]
    # The standard error of a difference is computed from the losses of both models in each window.
    # In the second and third run, the dense model's losses come from the cache.
    assert len(set(errors)) == 3 and min(errors) > 0


def test_dense_scores_of_another_batch_size_are_not_reused(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run does not reuse results of the dense model that were measured with another batch size.

    The batch size changes rounding, so both models must be measured with the same batch size.
    """
    arguments = (*base, "eval.perplexity.seq_len=33", "checkpoint.save=false")

    def numbers(name: str, batch_size: int, cache: str) -> dict[str, dict[str, float]]:
        places = (f"eval.perplexity.batch_size={batch_size}", f"cache_dir={tmp_path / cache}")
        return run(composed(*arguments, *places), tmp_path / name).evaluation

    measured = counted(monkeypatch)
    numbers("large", batch_size=8, cache="shared")
    after_large = numbers("small", batch_size=1, cache="shared")
    assert len(measured) == 4
    assert after_large == numbers("alone", batch_size=1, cache="empty")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, base: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    done = command_line(folder, *base, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def finished(finished_run: Path, base: list[str], tmp_path: Path) -> list[str]:
    """Return the arguments of a run that has already finished in tmp_path / "run"."""
    shutil.copytree(finished_run, tmp_path / "run")
    return [*base, f"hydra.run.dir={tmp_path / 'run'}"]


@pytest.mark.long
def test_status_and_report_of_a_finished_run(
    quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    written = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    assert read_state(tmp_path / "run") == "finished"
    again = quick_flap(*finished)
    assert again.returncode == 0 and "done already" in again.stderr
    other = quick_flap(*finished, "ratio=0.3")
    assert other.returncode == 1
    assert (
        f"{tmp_path / 'run'}: holds a finished run of another config (ratio is 0.2 there "
        "and 0.3 here"
    ) in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == written
    assert read_state(tmp_path / "run") == "finished"
    assert quick_flap(*finished, "ratio=0.3", "resume=false").returncode == 0
    assert Report.load(tmp_path / "run" / "report.json").ratio["requested"] == 0.3
    unsaved = quick_flap(*finished, "ratio=0.4", "resume=false", "checkpoint.save=false")
    assert (
        f"{tmp_path / 'run' / 'checkpoint'}: this checkpoint of an earlier run stays"
        in unsaved.stderr
    )


def test_a_run_on_other_inputs_is_not_done(
    quick_flap: Cli, text_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    """A run is done again if its text or model has changed, even if the paths are the same."""
    text = tmp_path / "mine.txt"
    model = tmp_path / "tiny"
    text.write_text(text_file.read_text())
    shutil.copytree(model_dir, model)
    arguments = [*tiny(model, text), f"hydra.run.dir={tmp_path / 'run'}", "checkpoint.save=false"]
    assert quick_flap(*arguments).returncode == 0
    first = Report.load(tmp_path / "run" / "report.json")
    text.write_text("cat dog " + text_file.read_text())
    again = quick_flap(*arguments)
    assert again.returncode == 0 and "runs again" in again.stderr and "calibration" in again.stderr
    assert Report.load(tmp_path / "run" / "report.json").evaluation != first.evaluation
    tiny_model("llama-gqa", seed=1).save_pretrained(model)
    assert "(model)" in quick_flap(*arguments).stderr


@pytest.mark.long
def test_done_means_that_the_checkpoint_is_there_and_its_own(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def start(ratio: float, *more: str) -> "CompletedProcess[str]":
        places = (f"checkpoint.dir={kept}", f"hydra.run.dir={tmp_path / str(ratio)}", "eval=[none]")
        return quick_flap(*base[:-2], f"ratio={ratio}", *places, *more)

    def held() -> float:
        return float(json.loads((kept / "flap.json").read_text())["provenance"]["config"]["ratio"])

    assert start(0.2).returncode == start(0.5, "checkpoint.overwrite=true").returncode == 0
    again = start(0.2)  # refused: the folder `kept` now has the checkpoint of the run at ratio 0.5
    assert again.returncode == 1 and f"checkpoint.dir={kept}: not empty; " in again.stderr
    assert held() == 0.5 and read_state(tmp_path / "0.2") == "finished"
    assert start(0.2, "checkpoint.overwrite=true").returncode == 0 and held() == 0.2
    shutil.rmtree(kept)
    assert start(0.2).returncode == 0 and held() == 0.2
    assert "done already" in start(0.2).stderr


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of all files in a folder, except flap.log.

    The log changes, because a refused command appends its error to flap.log.
    """
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "flap.log"
    }


@pytest.mark.parametrize(
    "mistake",
    [
        ["eval.perplexity.datasets=[wikitext3]"],
        ["resume=false", "ratio=0.99"],
        ["resume=false", "ratio=2"],
    ],
)
def test_a_mistake_in_a_later_command_leaves_a_finished_run_as_it_is(
    quick_flap: Cli, finished: list[str], tmp_path: Path, mistake: list[str]
) -> None:
    before = contents(tmp_path / "run")
    assert quick_flap(*finished, *mistake).returncode == 1
    assert contents(tmp_path / "run") == before and read_state(tmp_path / "run") == "finished"


def test_a_second_run_in_a_folder_is_refused_meanwhile(
    quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    write_status(run_dir, "running")
    before = contents(run_dir)
    with run_folder(run_dir):
        second = quick_flap(*finished, "ratio=0.5", "resume=false")
    assert second.returncode == 1
    told = (
        "another run is working there; name another folder (hydra.run.dir, hydra.sweep.dir), "
        "or wait"
    )
    [line] = second.stderr.splitlines()
    assert line.startswith(f"error: hydra.run.dir={run_dir}: {told}")
    assert contents(run_dir) == before


@pytest.mark.parametrize(
    "choice", ["", pytest.param("model.placement=stream", marks=pytest.mark.long)]
)
def test_more_is_measured_of_the_checkpoint_and_nothing_is_lost(
    choice: str, quick_flap: Cli, model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    """If the command of a finished run is repeated with other evaluators, nothing is pruned again.

    The report keeps the results that were measured before, and the seconds of the earlier stages.
    Afterwards, both commands find that the run is done already.
    """
    run_dir = tmp_path / "run"
    more = ["eval=[efficiency]", "eval.efficiency.prefill_len=8"]
    arguments = [*tiny(model_dir, text_file), f"hydra.run.dir={run_dir}", *choice.split()]
    assert quick_flap(*arguments).returncode == 0
    before = Report.load(run_dir / "report.json")
    files = contents(run_dir / "checkpoint")
    others = [one for one in arguments if not one.startswith("eval.")]
    done = quick_flap(*others, *more, "eval.efficiency.decode_len=2", "eval.efficiency.repeats=1")
    assert done.returncode == 0, done.stderr
    after = Report.load(run_dir / "report.json")
    for which in ("dense", "pruned"):
        assert before.evaluation[which].items() < after.evaluation[which].items()
    assert after.difference_stderr == before.difference_stderr
    measuring = {"evaluate", "load", "total"}
    for stage in before.seconds.keys() - measuring:
        assert after.seconds[stage] == before.seconds[stage]
    assert after.seconds["evaluate"] > before.seconds["evaluate"]
    card = run_dir / "checkpoint" / "README.md"
    assert {**contents(run_dir / "checkpoint"), card: b""} == {**files, card: b""}
    for command in (
        arguments,
        [*others, *more, "eval.efficiency.decode_len=2", "eval.efficiency.repeats=1"],
    ):
        assert "done already" in quick_flap(*command).stderr
    assert Report.load(run_dir / "report.json") == after


def moved_aside(checkpoint: Path) -> None:
    """Simulate a process that was killed between the two renames that replace a checkpoint."""
    name = f".{checkpoint.name}.1234abcd"
    checkpoint.with_name(f"{name}.lock").touch()
    checkpoint.with_name(f"{name}.new").mkdir()
    checkpoint.rename(checkpoint.with_name(f"{name}.old"))


@pytest.mark.parametrize("lose", [shutil.rmtree, moved_aside], ids=["deleted", "moved aside"])
def test_numbers_stay_if_the_checkpoint_is_lost(
    lose: Callable[[Path], None], quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    before = Report.load(run_dir / "report.json")
    weights = (run_dir / "checkpoint" / "model.safetensors").read_bytes()
    lose(run_dir / "checkpoint")
    done = quick_flap(*finished, "eval.perplexity.seq_len=8")
    assert done.returncode == 0, done.stderr

    after = Report.load(run_dir / "report.json")
    for model in ("dense", "pruned"):
        assert before.evaluation[model].items() < after.evaluation[model].items()
        assert set(after.evaluation[model]) == NUMBERS
    assert before.difference_stderr.items() < after.difference_stderr.items()
    assert (run_dir / "checkpoint" / "model.safetensors").read_bytes() == weights
    assert "perplexity@8" in (run_dir / "checkpoint" / "README.md").read_text()
    assert not list(run_dir.glob(".checkpoint*"))
    assert ("its checkpoint is gone" in done.stderr) == (lose is shutil.rmtree)
    assert "done already" in quick_flap(*finished, "eval.perplexity.seq_len=8").stderr


@pytest.mark.long
def test_numbers_stay_if_the_checkpoint_goes_elsewhere(
    quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    before = Report.load(tmp_path / "run" / "report.json")
    more = ("eval.perplexity.seq_len=8", f"checkpoint.dir={tmp_path / 'elsewhere'}")
    done = quick_flap(*finished, *more)
    assert done.returncode == 0, done.stderr
    after = Report.load(tmp_path / "run" / "report.json")
    assert before.evaluation["pruned"].items() < after.evaluation["pruned"].items()
    assert (tmp_path / "elsewhere" / "flap.json").is_file()
    assert "done already" in quick_flap(*finished, *more).stderr


@pytest.mark.long
def test_a_plan_is_written_once(quick_flap: Cli, finished: list[str], tmp_path: Path) -> None:
    """If a finished run measures more or restores its checkpoint, it does not rewrite plan.json."""
    plan = tmp_path / "run" / "plan.json"
    before = plan.stat()
    assert quick_flap(*finished, "eval.perplexity.seq_len=8").returncode == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    assert quick_flap(*finished).returncode == 0
    after = plan.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def killed_while_measuring(arguments: list[str]) -> None:
    pipeline.measure_pruned = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
    sys.argv = ["flap", *arguments]
    cli.main()


def test_a_kill_while_measuring_leaves_the_run_finished(
    quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    before = contents(tmp_path / "run")
    assert (
        forked(killed_while_measuring, [*finished, "eval.perplexity.seq_len=8"]) == -signal.SIGKILL
    )
    after = contents(tmp_path / "run")
    # The killed process must have changed no files, except those with the dense model's results.
    numbers = {tmp_path / "run" / name for name in ("evaluation.json", "documents.json.gz")}
    assert {path for path in before if before[path] != after[path]} <= numbers
    assert (
        read_state(tmp_path / "run") == "finished"
        and "done already" in quick_flap(*finished).stderr
    )


@pytest.mark.long
def test_a_kill_while_measuring_in_another_way_mixes_no_numbers(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    """A finished run is repeated with another number of tokens for perplexity, and is killed.

    It is killed after it has measured the dense model on this number of tokens. If a third command
    then adds another measurement, the report must still contain all results of the first command.
    """
    perplexity = [*base, "eval.perplexity.seq_len=33", f"hydra.run.dir={tmp_path / 'run'}"]
    assert quick_flap(*perplexity).returncode == 0
    before = Report.load(tmp_path / "run" / "report.json").evaluation
    killed = forked(killed_while_measuring, [*perplexity, "eval.perplexity.max_tokens=330"])
    assert killed == -signal.SIGKILL

    others = [one for one in perplexity if not one.startswith("eval.")]
    size = [f"eval.efficiency.{name}=1" for name in ("prefill_len", "decode_len", "repeats")]
    assert quick_flap(*others, "eval=[efficiency]", *size).returncode == 0
    after = Report.load(tmp_path / "run" / "report.json").evaluation
    assert before["dense"].items() < after["dense"].items()
    assert before["pruned"].items() < after["pruned"].items()


@pytest.mark.long
def test_a_finished_run_is_sent_to_a_tracker_once(
    quick_flap: Cli, finished: list[str], tmp_path: Path
) -> None:
    tracked = [*finished, "tracking=wandb", "tracking.mode=offline"]
    for _ in range(2):
        assert "done already" in quick_flap(*tracked).stderr
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize("text", ["", "[1]", '{"state": "failed"}', '{"schema": 1}'])
def test_a_damaged_status_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "status.json").write_text(text)
    assert read_state(tmp_path / "cell") in (None, "failed")
    assert len(failures(tmp_path)) == ('"failed"' in text)


def test_a_folder_of_another_version_is_named(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(
        '{"schema": 1, "state": "finished", "error": null}'
    )
    (tmp_path / "run" / "report.json").write_text('{"schema": 0}')
    done = quick_flap(*base, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert (
        "report.json: schema 0, this version reads 1; choose another folder, or resume=false"
        in done.stderr
    )
    assert (tmp_path / "run" / "report.json").read_text() == '{"schema": 0}'


@pytest.mark.long
def test_more_is_measured_of_a_cell_under_its_old_number(
    quick_flap: Cli, base: list[str], tmp_path: Path
) -> None:
    sweep = ("-m", *base, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert quick_flap(*sweep, "ratio=0.4").returncode == 0
    done = quick_flap(*sweep, "ratio=0.2,0.4", "eval.perplexity.seq_len=8")
    assert done.returncode == 0, done.stderr
    [cell] = (tmp_path / "sweep").glob("0_*_r0.4_*")
    assert set(Report.load(cell / "report.json").evaluation["pruned"]) == NUMBERS
    assert "perplexity@8" in (cell / "checkpoint" / "README.md").read_text()
    assert not list((tmp_path / "sweep").glob("1_*/checkpoint"))


def test_a_sweep_runs_what_is_missing(quick_flap: Cli, base: list[str], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    places = (
        f"hydra.sweep.dir={sweep}",
        "checkpoint.save=false",
        "model.name=org/tiny",
        "eval=[none]",
    )
    arguments = ("-m", *base[:-2], *places)
    assert quick_flap(*arguments, "metric=WIFV,magnitude", "ratio=0.2").returncode == 0
    cells = {path.parent: path.stat().st_mtime_ns for path in sweep.glob("*/report.json")}
    removed, kept = sorted(cells)
    names = ["0_org-tiny_WIFV_AL-AM_r0.2_s0", "1_org-tiny_magnitude_AL-AM_r0.2_s0"]
    assert [removed.name, kept.name] == names  # a slash in the name of the model becomes a hyphen
    for file in ("report.json", "status.json"):
        (removed / file).unlink()
    # The second command has more values of `ratio`, so Hydra numbers the runs differently. flap
    # finds a finished run of a sweep by its config, even if the run's folder has another number.
    done = quick_flap(*arguments, "metric=WIFV,magnitude", "ratio=0.2,0.4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done already") == 1
    assert (kept / "report.json").stat().st_mtime_ns == cells[kept]
    ratios = sorted(Report.load(path).ratio["requested"] for path in sweep.glob("*/report.json"))
    assert ratios == [0.2, 0.2, 0.4, 0.4]
