"""`flap study RUN OTHER` prints finished runs side by side in tables, or an error of one line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from flap.commands.study import main
from flap.results.comparison import config_table, numbers_table, read_runs
from flap.results.run_folder import RunRecord
from flap.storage import write_status
from tests.helpers.study_grid import (
    PERPLEXITY,
    SPEED,
    Cell,
    Report,
    add_cell,
    altered,
    keep_documents,
)


@pytest.fixture
def runs(tmp_path: Path, report: Report) -> list[Path]:
    """Create two runs with different structures, which were measured on the same two documents."""
    folders = []
    for structure, documents in (("AL-AM", [20.0, 22.0]), ("UL-UM", [21.0, 25.0])):
        numbers = {PERPLEXITY: sum(documents) / 2, SPEED: documents[0]}
        folders.append(
            add_cell(
                tmp_path,
                altered(report, 0.2, {PERPLEXITY: 20.0}, numbers),
                Cell("WIFV", structure, 0.2),
            )
        )
        keep_documents(folders[-1], numbers, {PERPLEXITY: documents})
    return folders


def test_of_the_config_only_what_differs_is_shown(runs: list[Path]) -> None:
    [[name, *values]] = config_table(read_runs(runs)).rows
    assert (name, values) == ("structure", ["AL-AM", "UL-UM"])
    assert not config_table(read_runs(runs[:1] * 2)).rows


def test_differences_have_errors_that_are_paired_by_document(runs: list[Path]) -> None:
    """On the two documents, the perplexities of the runs differ by 1 and by 3.

    The mean difference is 2, with the standard error √2 / √2 = 1.
    """
    table = numbers_table(read_runs(runs))
    assert table.heads == ["", "A", "B", "B - A"]
    assert [list(map(str, row)) for row in table.rows] == [
        [PERPLEXITY, "21.000", "23.000", ("+2.00 ± 1.00 (+9.5%) within noise")],
        [SPEED, "20.000", "21.000", "+5.0%"],
    ]
    assert numbers_table(read_runs(runs[:1] * 2)).rows[0][-1] == Text(
        "+0.00 ± 0.00 (+0.0%) within noise"
    )


@pytest.mark.long
def test_the_command_is_study(
    runs: list[Path], quick_flap: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    done = quick_flap("study", *map(str, runs))
    assert done.returncode == 0, done.stderr
    assert PERPLEXITY in done.stdout and not done.stderr


def test_other_documents_are_not_paired(runs: list[Path], tmp_path: Path, report: Report) -> None:
    numbers = {PERPLEXITY: 30.0, "piqa/acc": 0.5}
    other = add_cell(tmp_path, altered(report, 0.2, {}, numbers), Cell("IFV", "AL-AM", 0.2))
    keep_documents(other, numbers, data="others")
    found = {
        name: list(map(str, row)) for name, *row in numbers_table(read_runs([runs[0], other])).rows
    }
    assert found[PERPLEXITY] == ["21.000", "30.000", "+9.00 (+42.9%)"]
    assert found["piqa/acc"] == ["", "0.500", ""]  # only one of the two runs has measured this task


def test_a_number_of_several_documents_is_paired_on_those_that_both_runs_have_seen() -> None:
    """A run whose command was repeated may have measured a task on several sets of documents.

    Here, the sets are called a, b and c. The difference between two runs is computed only from sets
    on which both runs were measured. The set b is left out, because its single document gives no
    standard error.
    """
    one = RunRecord("one", documents={("acc", "a"): [1.0, 0.0, 0.0], ("acc", "b"): [0.0]})
    other = RunRecord(
        "other", documents={("acc", "a"): [1.0, 1.0, 0.0], ("acc", "b"): [1.0], ("acc", "c"): [1.0]}
    )
    difference = other.difference_to(one, "acc")
    assert difference is not None and difference.mean == pytest.approx(1 / 3)


def test_the_command_prints_tables_that_are_not_folded(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*map(str, runs)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"A  {runs[0]}", f"B  {runs[1]}"]
    assert any(line.strip(" │").startswith(PERPLEXITY) and "±" in line for line in lines)
    assert {"Config", "Numbers of the pruned models"} <= {*lines}


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            lambda run: (run / "report.json").write_text("{"),
            "damaged (report.json: cannot be read (JSONDecodeError))",
        ),
        (lambda run: write_status(run, "failed", "out of memory"), "failed (out of memory)"),
        (
            lambda run: write_status(run, "running"),
            "unfinished (no report: still running, or killed)",
        ),
        (
            lambda run: write_status(run, "interrupted"),
            "unfinished (no report: interrupted by Ctrl-C)",
        ),
    ],
)
def test_no_result_is_one_line(
    runs: list[Path], damage: object, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(runs[1])  # type: ignore[operator]
    with pytest.raises(SystemExit):
        main([*map(str, runs)])
    assert capsys.readouterr() == ("", f"error: {runs[1]}: {why}; expected finished runs\n")
