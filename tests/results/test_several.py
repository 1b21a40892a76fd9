"""A study can contain several sweeps, and shows by which options their cells (runs) differ."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from flap.commands.study import main
from flap.results.comparison import mismatches
from flap.results.configs import varying
from flap.results.study_files import read_study, write_study
from tests.helpers.study_grid import PERPLEXITY, Cell, Report, add_cell, add_command, altered


@pytest.fixture
def sweeps(tmp_path: Path, report: Report) -> tuple[Path, Path]:
    """Create two sweeps with one finished cell each. The two cells differ only in the seed."""
    folders = tmp_path / "first", tmp_path / "second"
    for seed, folder in enumerate(folders):
        folder.mkdir()
        one = altered(report, 0.2, {PERPLEXITY: 20.0}, {PERPLEXITY: 30.0 + seed})
        add_cell(folder, one, Cell("WIFV", "AL-AM", 0.2, seed=seed))
        add_command(folder, f"seed={seed}")
    return folders


def change(cell: Path, **values: Any) -> None:
    """Replace entries in the report of a cell."""
    path = cell / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_sweeps_are_one_page_beside_them(
    sweeps: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [contents(folder) for folder in sweeps]
    assert list(mismatches(read_study(*sweeps).finished)) == []
    main([str(folder) for folder in sweeps])
    index = sweeps[0].parent / "first+second" / "index.html"
    assert capsys.readouterr().out == f"{index}\n"
    assert [contents(folder) for folder in sweeps] == before
    with (index.parent / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sweep"], row["cell"]) for row in rows] == [
        ("first", "../first/0_tiny_WIFV_AL-AM_r0.2_s0"),
        ("second", "../second/0_tiny_WIFV_AL-AM_r0.2_s1"),
    ]
    assert all((index.parent / row["cell"] / "report.json").is_file() for row in rows)
    text = index.read_text()
    assert "python -m flap -m seed=0" in text and "python -m flap -m seed=1" in text
    assert 'href="../second/0_tiny_WIFV_AL-AM_r0.2_s1/report.json"' in text


def test_sweeps_of_one_name_are_told_by_their_paths(tmp_path: Path, report: Report) -> None:
    folders = [tmp_path / place / "sweep" for place in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        add_cell(folder, report, Cell("WIFV", "AL-AM", 0.2))
    assert read_study(*folders).values("sweep") == ["a/sweep", "b/sweep"]
    assert write_study(*folders) == tmp_path / "a" / "sweep+sweep" / "index.html"


def test_what_is_set_here_and_default_there_is_no_difference(
    tmp_path: Path, report: Report
) -> None:
    seq_len = report["config"]["calibration"]["seq_len"]
    for name, overrides in (
        ("a", (f"calibration.seq_len={seq_len}",)),
        ("b", ()),
        ("c", ("calibration.seq_len=64",)),
    ):
        (tmp_path / name).mkdir()
        cell = add_cell(tmp_path / name, report, Cell("WIFV", "AL-AM", 0.2, overrides=overrides))
        change(cell, config=json.loads((cell / "report.json").read_text())["config"])
    alike = read_study(tmp_path / "a", tmp_path / "b")
    assert [cell.options for cell in alike.runs] == ["", ""]
    assert len(read_study(tmp_path / "b", tmp_path / "c").values("options")) == 1


def test_every_config_key_that_varies_is_known(tmp_path: Path, report: Report) -> None:
    """A study finds each config key in which cells differ, even if no override names this key.

    Keys that do not change results, such as paths, are ignored.
    """
    config = report["config"]
    for i, samples in enumerate((128, 16, 128)):
        cell = add_cell(tmp_path, report, Cell("WIFV", "AL-AM", 0.2, seed=i))
        calibration = config["calibration"] | {"num_samples": samples, "seq_len": 128 if i else 64}
        change(
            cell,
            config=config | {"calibration": calibration, "cache_dir": str(i), "run_name": str(i)},
        )
    running = add_cell(tmp_path, None, Cell("WIFV", "AL-AM", 0.4, state="running"))
    unresolved = {
        "calibration": {"num_samples": "${other}"},
        "compensation": {"_target_": "flap.Linear"},
    }
    (running / ".hydra" / "config.yaml").write_text(json.dumps(unresolved))
    choices = {"metric": "WIFV", "compensation": "linear", "hydra/launcher": "slurm"}
    (running / ".hydra" / "hydra.yaml").write_text(
        json.dumps({"hydra": {"runtime": {"choices": choices}}})
    )
    cells = read_study(tmp_path).runs
    assert varying(cell.config for cell in cells) == {
        "calibration.num_samples": ["16", "128"],
        "calibration.seq_len": ["64", "128"],
    }
    [unfinished] = (cell for cell in cells if cell.state == "unfinished")
    assert unfinished.config["compensation"] == "linear"


def test_runs_of_different_models_and_versions_are_told(
    sweeps: tuple[Path, Path], report: Report
) -> None:
    [cell] = sweeps[1].glob("0_*")
    config = report["config"] | {
        "ratio": 0.2,
        "seed": 1,
        "model": report["config"]["model"] | {"name": "other"},
    }
    config["eval"] = {"perplexity": report["config"]["eval"]["perplexity"] | {"max_tokens": 64}}
    change(cell, config=config, versions=report["versions"] | {"torch": "9.9.9"})
    torch = report["versions"]["torch"]
    assert list(mismatches(read_study(*sweeps).finished)) == [
        "Runs of different models: other, tiny. Their perplexities can be compared only "
        "where the models have the same "
        "tokenizer.",
        f"Runs of different versions, from which differences may come: torch {torch} and 9.9.9.",
        "Not measured alike: eval.perplexity.max_tokens is 64 or 320.",
    ]
    text = write_study(*sweeps).read_text()
    assert text.index("Runs of different models: other, tiny.") < text.index("Results</h2>")


def test_one_folder_that_cannot_be_read_is_one_line_and_nothing_is_written(
    sweeps: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweeps[0].parent / "empty"
    folder.mkdir()
    before = contents(sweeps[0].parent)
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in (*sweeps, folder)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and line.startswith(f"error: {folder}: no cell in it; ")
    assert contents(sweeps[0].parent) == before
