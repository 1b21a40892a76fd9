"""Tables fit the width of a terminal. In a file or a pipe, text in tables is not wrapped."""

import pytest
from rich.console import Console

from flap.results.tables import Table, wide_console

NAME = "boolq-passages/bits_per_byte@128"
CHANGE = "+0.1752 ± 0.0059 (+16.2%) within noise"
TABLE = Table(
    ("", "dense", "pruned", "pruned - dense", "domain"),
    [(NAME, "1.0823", "1.2574", CHANGE, "calibration")],
)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_table_fits_a_terminal_and_keeps_its_names_whole(width: int) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(TABLE.console())

    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].endswith("┓")
    assert NAME in capture.get()


def test_a_heading_that_is_longer_than_its_values_stays_whole() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(Table(("structure", "ratio"), [("AL", "0.2")]).console())
    assert "structure" in capture.get()


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    wide_console().print(TABLE.console())
    [line] = [line for line in capsys.readouterr().out.splitlines() if NAME in line]
    assert CHANGE in line
    assert "calibration" in line
