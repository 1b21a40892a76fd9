"""flap reads the folder of a sweep, and writes study.csv and an HTML page.

A cell is one run of the sweep.
"""

import csv
import gzip
import json
import logging
import os
import re
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flap.commands.study import main
from flap.results.plots import draw
from flap.results.series import series_of
from flap.results.study_files import read_study, write_study
from flap.results.study_table import tabulate
from flap.runs.sweeps.callbacks import StudyCallback, write_open_study
from flap.storage import write_status
from tests.helpers.forked import command_line
from tests.helpers.marks import quick
from tests.helpers.permissions import bound_by_permissions
from tests.helpers.study_grid import (
    AVERAGE,
    CRASH,
    PERPLEXITY,
    Cell,
    add_cell,
    add_command,
    altered,
    full_grid,
    keep_documents,
)
from tests.helpers.study_grid import Report as Plain

DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture
def sweep(tmp_path: Path, report: Plain) -> Path:
    """Create a sweep with two finished cells at two ratios, a failed cell and a killed cell.

    The perplexity of the cell at ratio 0.5 is not finite.
    """
    folder = tmp_path / "sweep"
    folder.mkdir()
    dense = {PERPLEXITY: 20.0, "piqa/acc": 0.7, "piqa/acc_stderr": 0.01}
    add_cell(
        folder, altered(report, 0.5, dense, dense | {PERPLEXITY: None}), Cell("IFV", "AL-AM", 0.5)
    )
    add_cell(
        folder, altered(report, 0.2, dense, dense | {PERPLEXITY: 31.25}), Cell("IFV", "AL-AM", 0.2)
    )
    add_cell(folder, None, Cell("WIFV", "UL-UM", 0.2, seed=3, state="failed", error=CRASH))
    add_cell(folder, None, Cell("WIFV", "AL-AM", 0.2, state="running"))
    (folder / "4_done_elsewhere").mkdir()
    return folder


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_of_cells_with_and_without_a_result(sweep: Path, report: Plain) -> None:
    write_study(sweep)
    low, high, *others = read_csv(sweep)
    assert (low["cell"], high["cell"]) == ("1_tiny_IFV_AL-AM_r0.2_s0", "0_tiny_IFV_AL-AM_r0.5_s0")
    assert (
        low
        | {
            "state": "finished",
            "model": "tiny",
            "method": "flap",
            "metric": "IFV",
            "structure": "AL-AM",
            "ratio": "0.2",
            "realised_ratio": str(0.2 + 0.0004),
            "seed": "0",
            "error": "",
            "statistics_cache": report["statistics_cache"],
            "parameters_after": str(report["parameters"]["total_after"]),
            f"dense/{PERPLEXITY}": "20.0",
            f"pruned/{PERPLEXITY}": "31.25",
            "pruned/piqa/acc_stderr": "0.01",
            "seconds_total": str(report["seconds"]["total"]),
        }
        == low
    )
    assert high[f"pruned/{PERPLEXITY}"] == "nan"
    killed, failed = sorted(others, key=lambda row: row["state"], reverse=True)
    assert (failed["state"], failed["metric"], failed["structure"], failed["seed"]) == (
        "failed",
        "WIFV",
        "UL-UM",
        "3",
    )
    assert failed["error"] == CRASH
    assert (killed["state"], killed["ratio"], killed[f"pruned/{PERPLEXITY}"]) == (
        "unfinished",
        "0.2",
        "",
    )
    assert "killed" in killed["error"]


def test_a_study_says_what_is_of_the_calibrations_domain(tmp_path: Path, report: Plain) -> None:
    names = [PERPLEXITY, "boolq-passages/perplexity@128", "boolq/acc", "boolq/acc_stderr"]
    numbers = dict.fromkeys(names, 0.5)
    boolq = {
        PERPLEXITY: "other",
        "boolq-passages/perplexity@128": "calibration",
        "boolq": "calibration",
    }
    for ratio, domains in ((0.2, boolq), (0.3, {})):
        add_cell(
            tmp_path,
            altered(report, ratio, numbers, numbers) | {"domains": domains},
            Cell("IFV", "AL-AM", ratio),
        )
    index = write_study(tmp_path)
    inside = "boolq-passages/perplexity@128; boolq/acc"
    assert [row["calibration_domain"] for row in read_csv(tmp_path)] == [inside, ""]
    assert index.read_text().count("calibration’s domain</span>") == 2
    swapped = {
        PERPLEXITY: "calibration",
        "boolq-passages/perplexity@128": "other",
        "boolq": "calibration",
    }
    add_cell(
        tmp_path,
        altered(report, 0.6, numbers, numbers) | {"domains": swapped},
        Cell("IFV", "AL-AM", 0.6),
    )
    assert [read_study(tmp_path).domain(name) for name in names[:3]] == ["", "", "calibration"]


def test_the_page_has_the_warnings_of_its_runs(tmp_path: Path, report: Plain) -> None:
    add_cell(
        tmp_path, report | {"warnings": ["its numbers mean nothing"]}, Cell("IFV", "AL-AM", 0.2)
    )
    assert "its numbers mean nothing" in write_study(tmp_path).read_text()


def test_the_page_says_how_many_documents_were_left_out(tmp_path: Path, report: Plain) -> None:
    """If cells were measured on different documents, the page says so.

    The dense model then has a separate row for each set of documents.
    """
    facts = {"left_out": {"boolq": 1553}, "inputs": {"boolq": "a"}}
    sweep = tmp_path / "alike"
    for structure in ("AL-AM", "UL-UM"):
        add_cell(sweep, report | facts, Cell("IFV", structure, 0.2))
    page = write_study(sweep).read_text()
    assert "<dt>documents left out</dt><dd>1,553 of boolq</dd>" in page
    assert "Not measured on the same documents" not in page
    assert len(read_study(sweep).dense) == 1

    add_cell(sweep, report | {"inputs": {"boolq": "b"}}, Cell("WIFV", "AL-AM", 0.2))
    page = write_study(sweep).read_text()
    assert "1,553 of boolq (2 cells) · none (1 cell)" in page
    assert (
        "Not measured on the same documents: boolq, of which runs leave out 0 or 1,553 "
        "documents that they have read."
    ) in page
    assert len(read_study(sweep).dense) == 2


def test_the_page_of_runs_that_leave_nothing_out_does_not_speak_of_it(
    tmp_path: Path, report: Plain
) -> None:
    """Reports of earlier versions of flap have no entry `left_out`.

    The page of such reports does not mention documents that were left out.
    """
    report = {name: value for name, value in report.items() if name != "left_out"}
    add_cell(tmp_path, report, Cell("IFV", "AL-AM", 0.2))
    assert "left out" not in write_study(tmp_path).read_text()


def test_a_cell_that_was_run_again_under_another_number_is_not_missing(
    tmp_path: Path, report: Plain
) -> None:
    few = ("calibration.num_samples=2",)
    many = ("calibration.num_samples=8", "resume=true")
    add_cell(tmp_path, None, Cell("IFV", "AL-AM", 0.2, state="failed", overrides=few))
    add_cell(tmp_path, None, Cell("IFV", "AL-AM", 0.2, state="running", overrides=many))
    add_cell(tmp_path, altered(report, 0.2, {}, {}), Cell("IFV", "AL-AM", 0.2, overrides=many[:1]))
    assert [cell.folder[0] for cell in read_study(tmp_path).runs] == ["2", "0"]


def test_a_finished_cell_is_told_by_its_own_config(tmp_path: Path, report: Plain) -> None:
    """The curve of a cell depends on the config in its report, and not on .hydra/overrides.yaml.

    Cells that differ in their calibration windows, or in their window lengths of perplexity, are on
    different curves of the plots. A cell without the zero-shot tasks is on the same curve as a cell
    with these tasks.
    """
    for overrides in (
        (),
        ("~eval.zero_shot",),
        ("eval.perplexity.seq_len=64",),
        ("calibration.num_samples=2",),
    ):
        cell = add_cell(tmp_path, report, Cell("IFV", "AL-AM", 0.2, overrides=overrides))
    (cell / ".hydra" / "overrides.yaml").write_text('["calibration.num_samples=64"]')
    options = {cell.folder[0]: cell.options for cell in read_study(tmp_path).runs}
    assert options == {
        "0": "",
        "1": "",
        "2": "eval.perplexity.seq_len=64",
        "3": "calibration.num_samples=2",
    }


@pytest.mark.parametrize(
    ("said", "best", "headed"),
    [
        (("lower", "lower"), "0.3", "lower"),
        (("higher", "higher"), "0.6", "higher"),
        (("lower", "higher"), None, None),
    ],
)
def test_the_best_is_what_the_runs_say_is_better(
    tmp_path: Path, report: Plain, said: tuple[str, str], best: str | None, headed: str | None
) -> None:
    for metric, value, better in zip(("IFV", "WIFV"), (0.3, 0.6), said, strict=True):
        one = altered(report, 0.2, {}, {"speech/wer": value}) | {"better": {"speech/wer": better}}
        keep_documents(add_cell(tmp_path, one, Cell(metric, "AL-AM", 0.2)), {"speech/wer": value})
    page = write_study(tmp_path).read_text()
    marked = [
        value.text
        for row in tabulate(read_study(tmp_path)).rows
        for value in row
        if value.mark == "best"
    ]
    assert marked == ([] if best is None else [best])
    assert re.findall("(lower|higher) is better</span>", page) == (
        [] if headed is None else [headed]
    )


@pytest.mark.parametrize(
    ("methods", "metrics", "columns"),
    [
        (("custom", "flap"), ("IFV", "WIFV"), ["metric", "structure", "ratio"]),
        (("flap", "flap_plus"), ("WIFV", "OBS"), ["method", "metric", "structure", "ratio"]),
        (("custom", "flap"), ("WIFV", "WIFV"), ["method", "metric", "structure", "ratio"]),
    ],
    ids=["the metric says it", "named", "nothing else does"],
)
def test_the_method_is_a_column_where_it_tells_cells_apart(
    methods: tuple[str, str],
    metrics: tuple[str, str],
    columns: list[str],
    tmp_path: Path,
    report: Plain,
) -> None:
    for method, metric in zip(methods, metrics, strict=True):
        one = altered(report, 0.2, {}, {PERPLEXITY: 30.0})
        folder = add_cell(tmp_path, one, Cell(metric, "AL-AM", 0.2))
        written = json.loads((folder / "report.json").read_text())
        written["config"]["method"] = method
        (folder / "report.json").write_text(json.dumps(written))
    study = read_study(tmp_path)
    assert tabulate(study).choices == columns
    assert ("method" in study.title) == ("method" in columns)


def test_a_cell_without_a_result_has_the_name_of_its_models_folder(tmp_path: Path) -> None:
    """Without a result, a cell's model has the name of the model folder, not the default name.

    The config of an unfinished cell still has the name of the default model, although `model.path`
    is the path of another model.
    """
    model = json.dumps({"name": "smollm2-135m", "path": "/my/tiny"})
    cell = add_cell(tmp_path, None, Cell("WIFV", "AL-AM", 0.2, state="failed", error=CRASH))
    (cell / ".hydra" / "config.yaml").write_text(f'{{"model": {model}}}')
    assert [run.model for run in read_study(tmp_path).runs] == ["tiny"]


def rights(*wrong: int) -> list[float]:
    """Return the scores of 50 answers: 0 for the questions in `wrong`, and 1 for all others."""
    return [float(i not in wrong) for i in range(50)]


@pytest.mark.parametrize(
    ("wrong", "data", "marks"),
    # If one model has five wrong answers where the other is right, and the reverse never happens,
    # the p-value is 0.06 in McNemar's exact test (but 0.02 in a t-test). So the difference is not
    # clear, and both results get the mark "near".
    [
        ((0, 5), ("same", "same"), ["near", "near"]),
        ((1, 20), ("same", "same"), ["best", ""]),
        ((1, 20), ("one", "other"), ["", ""]),
    ],
)
def test_only_what_is_paired_and_clear_is_best(
    tmp_path: Path, report: Plain, wrong: tuple[int, int], data: tuple[str, str], marks: list[str]
) -> None:
    for metric, number, where in zip(("IFV", "WIFV"), wrong, data, strict=True):
        numbers = {"piqa/acc": (50 - number) / 50}
        folder = add_cell(tmp_path, altered(report, 0.2, {}, numbers), Cell(metric, "AL-AM", 0.2))
        keep_documents(folder, numbers, {"piqa/acc": rights(*range(number))}, where)
    study = read_study(tmp_path)
    marked = {
        run.metric: row[-2].mark for run, row in zip(study.runs, tabulate(study).rows, strict=True)
    }
    assert [marked["IFV"], marked["WIFV"]] == marks


def test_an_average_is_compared_by_its_parts(tmp_path: Path, report: Plain) -> None:
    """A model that is clearly better in one task, and equal in the other, has the best average."""
    for metric, wrong in (("IFV", 0), ("WIFV", 20)):
        numbers = {AVERAGE: 1 - wrong / 100, "a/acc": 1 - wrong / 50, "b/acc": 1.0}
        one = altered(report, 0.2, {}, numbers) | {"averages": {AVERAGE: ["a/acc", "b/acc"]}}
        documents = {"a/acc": rights(*range(wrong)), "b/acc": rights()}
        keep_documents(add_cell(tmp_path, one, Cell(metric, "AL-AM", 0.2)), numbers, documents)
    study = read_study(tmp_path)
    table = tabulate(study)
    marks = {
        run.metric: [one.mark for one in row[-4:-1]]
        for run, row in zip(study.runs, table.rows, strict=True)
    }
    assert table.results[-4:-1] == [AVERAGE, "a/acc", "b/acc"]
    assert marks == {"IFV": ["best", "best", "near"], "WIFV": ["", "", "near"]}


@pytest.mark.long
def test_plots_are_those_that_were_measured(tmp_path: Path, sweep: Path, report: Plain) -> None:
    def names(folder: Path) -> list[str]:
        return [plot.name for plot in draw(read_study(folder))]

    assert names(sweep) == ["perplexity", "layers", "parameters"]
    assert names(full_grid(tmp_path / "grid", report)) == [
        "perplexity",
        "zero_shot",
        "layers",
        "parameters",
        "speed",
    ]


def test_runs_with_a_trimmed_vocabulary_are_compared_by_bits_per_byte(
    tmp_path: Path, report: Plain
) -> None:
    """With a trimmed vocabulary, perplexity is not measured, so bits per byte are compared.

    For the dense model, the reports contain both the perplexity and the bits per byte.
    """
    bits = "wikitext2/bits_per_byte@128"
    dense = {PERPLEXITY: 20.0, bits: 1.0}
    trimmed = altered(report, 0.2, dense, {bits: 1.2})
    trimmed["vocabulary"] = {"before": 512, "after": 320, "covered": 1.0}
    add_cell(tmp_path, trimmed, Cell("WIFV", "AL-AM", 0.2))
    whole = altered(report, 0.2, dense, {PERPLEXITY: 30.0, bits: 1.1})
    add_cell(tmp_path, whole, Cell("IFV", "AL-AM", 0.2))

    study = read_study(tmp_path)
    assert study.measured == [bits, PERPLEXITY]
    # The cells are sorted by bits per byte, from low to high.
    assert [run.metric for run in study.runs] == ["IFV", "WIFV"]
    table = tabulate(study)
    heads = [*table.choices, *table.results]
    perplexities = [row[heads.index(PERPLEXITY)].text for row in table.rows]
    assert perplexities == ["30.00", ""]
    assert [row[heads.index(bits)].text for row in table.rows] == ["1.1", "1.2"]
    [(_, of_dense)] = table.dense
    assert of_dense[table.results.index(PERPLEXITY)].text == "20.00"
    assert [plot.name for plot in draw(study)] == ["bits_per_byte", "layers", "parameters"]


def test_seeds_are_one_series_and_other_options_are_not(tmp_path: Path, report: Plain) -> None:
    for seed, value in ((0, 30.0), (1, 36.0)):
        one = altered(report, 0.2, {AVERAGE: 0.6}, {PERPLEXITY: value, AVERAGE: None})
        add_cell(
            tmp_path,
            one,
            Cell("WIFV", "AL-AM", 0.2, seed=seed, overrides=("calibration.num_samples=8",)),
        )
    other = altered(report, 0.2, {}, {PERPLEXITY: 50.0})
    add_cell(
        tmp_path,
        other,
        Cell(
            "WIFV", "AL-AM", 0.2, overrides=("calibration.num_samples=2", "checkpoint.save=false")
        ),
    )
    few, many = series_of(read_study(tmp_path))
    assert few.label == "WIFV calibration.num_samples=2 checkpoint.save=false"
    assert many.label == "WIFV calibration.num_samples=8"
    assert many.by_ratio[f"pruned/{PERPLEXITY}"].T.to_dict("list") == {
        0.2: [30.0, 33.0, 36.0]
    }  # minimum, mean and maximum over the seeds
    assert many.by_ratio[f"pruned/{AVERAGE}"].isna().all(axis=None)
    assert "means over the seeds" in draw(read_study(tmp_path))[0].caption


def test_a_folder_for_each_checkpoint_is_no_option_and_cannot_stop_a_page(
    tmp_path: Path, report: Plain
) -> None:
    named = ("checkpoint.dir=ck/${hydra:job.num}",)
    for seed in (0, 1):
        add_cell(
            tmp_path,
            altered(report, 0.2, {}, {PERPLEXITY: 30.0}),
            Cell("WIFV", "AL-AM", 0.2, seed, overrides=named),
        )
    running = add_cell(tmp_path, None, Cell("WIFV", "AL-AM", 0.5, state="running", overrides=named))
    config = json.loads((running / ".hydra" / "config.yaml").read_text())
    config["model"] = {"path": "${oc.env:NOT_SET_HERE}/x", "name": "${model.path}"}
    (running / ".hydra" / "config.yaml").write_text(json.dumps(config))
    study = read_study(tmp_path)
    [series] = series_of(study)
    assert (
        len(series.rows) == 2
        and study.runs[-1].model is None
        and {run.options for run in study.runs} == {""}
    )


def test_cells_of_one_target_are_compared_whatever_share_they_removed(
    tmp_path: Path, report: Plain
) -> None:
    for seed, share, value in ((0, 0.264, 30.0), (1, 0.266, 36.0)):
        for metric, more in (("WIFV", 0), ("IFV", 9)):
            one = altered(report, share, {PERPLEXITY: 20.0}, {PERPLEXITY: value + more})
            folder = add_cell(tmp_path, one, Cell(metric, "AL-AM", share, seed))
            written = json.loads((folder / "report.json").read_text())
            written["config"] |= {"ratio": None, "target": {"bytes": 150000.0, "parameters": None}}
            (folder / "report.json").write_text(json.dumps(written))
    study = read_study(tmp_path)
    assert {run.requested for run in study.runs} == {"target.bytes=150000.0"}
    for line in series_of(study):
        [[low, mean, high]] = line.by_ratio[f"pruned/{PERPLEXITY}"].to_numpy().tolist()
        assert (low, mean, high) == ((30, 33, 36) if line.label == "WIFV" else (39, 42, 45))


def test_the_command_can_be_pasted(tmp_path: Path) -> None:
    add_cell(tmp_path, None, Cell("WIFV", "AL-AM", 0.2, state="failed"))
    assert read_study(tmp_path).commands == []
    add_command(tmp_path, "metric=IFV,WIFV", "run_name=a b")
    assert read_study(tmp_path).commands == ["python -m flap -m metric=IFV,WIFV 'run_name=a b'"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("report.json", '{"schema": 1, "eva', "report.json: cannot be read (JSONDecodeError)"),
        ("report.json", '{"schema": 0}', "report.json: schema 0, this version reads 1"),
        (
            "report.json",
            '{"schema": 1, "config": {}}',
            "report.json: has no valid device, sources, warnings, parameters, ratio, "
            "layers, layers_before, "
            "evaluation, versions, git",
        ),
        ("report.json", None, "report.json: cannot be read (FileNotFoundError)"),
        pytest.param("report.json", DEEP, "report.json: cannot be read (ValueError)", id="deep"),
        ("status.json", "{torn", "status.json: no state"),
        pytest.param("status.json", DEEP, "status.json: no state", id="deep status"),
    ],
)
def test_one_damaged_file_costs_its_cell_alone(
    sweep: Path, name: str, content: str | None, why: str
) -> None:
    finished = [cell for cell in read_study(sweep).finished if not cell.folder.startswith("1_")]
    path = next(sweep.glob(f"1_*/{name}"))
    path.unlink() if content is None else path.write_text(content)
    [damaged] = [cell for cell in read_study(sweep).runs if cell.state == "damaged"]
    assert damaged.folder == path.parent.name and damaged.error == f"{why}; run the cell again"
    assert (damaged.metric, damaged.ratio) == ("IFV", 0.2)
    assert read_study(sweep).finished == finished
    assert "1 damaged" in write_study(sweep).read_text()


@pytest.mark.parametrize("section", quick(1, ["evaluation", "git", "parameters", "ratio"]))
def test_a_report_with_an_empty_section_costs_no_page(sweep: Path, section: str) -> None:
    path = next(sweep.glob("1_*/report.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {section: {}}))
    assert len(read_study(sweep).finished) == 2
    assert "2 finished" in write_study(sweep).read_text()


@pytest.mark.parametrize("name", quick(1, ["evaluation.json", "documents.json.gz"]))
def test_results_that_are_nested_too_deeply_leave_the_numbers_of_the_report(
    sweep: Path, name: str
) -> None:
    before = len(read_study(sweep).finished)
    for folder in {path.parent for path in sweep.glob("*/report.json")}:
        content = DEEP.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(read_study(sweep).finished) == before
    assert write_study(sweep).is_file()


@pytest.mark.parametrize("name", quick(1, ["config", "hydra", "overrides"]))
@pytest.mark.parametrize(
    "content",
    ["{torn: [", "7", "hydra:\n  overrides:", "hydra: 7", DEEP],
    ids=["torn", "a number", "an empty section", "no section", "too deep"],
)
def test_a_damaged_record_of_hydra_costs_no_cell(sweep: Path, name: str, content: str) -> None:
    for number in (0, 2):
        next(sweep.glob(f"{number}_*/.hydra/{name}.yaml")).write_text(content)
    (sweep / "multirun.yaml").write_text(content)
    study = read_study(sweep)
    assert len(study.finished) == 2 and study.commands == []


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("nowhere", "no such folder"),
        ("4_done_elsewhere", "no cell in it"),
        ("2_tiny_WIFV_UL-UM_r0.2_s3", "a single run"),
    ],
)
def test_without_a_study_it_is_one_line(
    sweep: Path, folder: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(sweep / folder)])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {sweep / folder}: {why}; expected ")


def test_a_folder_that_cannot_be_written_is_named(sweep: Path, tmp_path: Path) -> None:
    sweep.chmod(0o500)
    done = command_line(tmp_path, "study", "sweep", before=bound_by_permissions)
    line = "error: sweep: the study cannot be written there (Permission denied); --into names"
    assert done.returncode == 1 and done.stderr == f"{line} another folder\n"


def sweep_config(folder: Path) -> DictConfig:
    """Return the part of Hydra's config that `StudyCallback` reads."""
    tracking = {"_target_": "flap.results.tracking.NoTracking"}
    hydra = {
        "sweep": {"dir": str(folder)},
        "launcher": {},
        "overrides": {"task": []},
        "job": {"env_set": {}},
    }
    return OmegaConf.create(
        {"hydra": hydra, "tracking": tracking, "model": {"placement": "device"}}
    )


def test_the_callback_writes_the_study_as_cells_end(
    sweep: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = OmegaConf.merge(sweep_config(sweep), {"hydra": {"mode": RunMode.MULTIRUN}})
    StudyCallback().on_job_end(config, JobReturn())
    write_status(next(sweep.glob("3_*")), "failed", "out of memory")
    # This call does nothing, because the page is updated at most once a minute.
    StudyCallback().on_job_end(config, JobReturn())
    assert "out of memory" not in (sweep / "index.html").read_text() and not caplog.records
    os.utime(sweep / "index.html", (0, 0))
    StudyCallback().on_job_end(config, JobReturn())
    assert "out of memory" in (sweep / "index.html").read_text()
    (sweep / "index.html").unlink()
    StudyCallback().on_multirun_end(config)
    assert (sweep / "index.html").is_file()
    assert [one.getMessage() for one in caplog.records if "flap" in one.name] == [
        f"study: {sweep / 'index.html'}"
    ]


def test_the_callback_never_breaks_a_sweep(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StudyCallback().on_multirun_end(sweep_config(tmp_path))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "no cell in it" in record.getMessage()


def test_a_sweep_that_an_error_ended_has_its_study_too(sweep: Path) -> None:
    StudyCallback().on_multirun_start(sweep_config(sweep))
    write_open_study()
    assert (sweep / "index.html").is_file()
    (sweep / "index.html").unlink()
    write_open_study()
    assert not (sweep / "index.html").exists()


@pytest.mark.parametrize(
    "differs",
    [(), ("model.path=/models/other",), ("model.dtype=bfloat16",), ("eval.perplexity=x",)],
)
def test_a_dense_model_has_a_row_for_each_way(
    differs: tuple[str, ...], report: Plain, tmp_path: Path
) -> None:
    """Cells that differ in the dense model or its evaluation get separate rows for dense models."""
    for overrides in ((), differs):
        add_cell(tmp_path, report, Cell("IFV", "AL-AM", 0.2, overrides=overrides))
    assert len(read_study(tmp_path).dense) == (2 if differs else 1)
