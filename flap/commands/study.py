"""The command `python -m flap study FOLDER …`: show a sweep's results, or compare runs."""

import argparse
from pathlib import Path

from flap.config.paths import check_path
from flap.storage.status import exit_on_error


def main(arguments: list[str]) -> None:
    """Write the study of one or several sweeps, or print a comparison of finished runs.

    A study is an HTML page with a table and plots of the results. If a study is written, its path
    is printed. On an error, print one line and exit with code 1.
    """
    given = _parser().parse_args(arguments)
    # imported here because --help should not wait seconds for pandas
    from flap.results.comparison import print_comparison
    from flap.results.study_files import write_study

    with exit_on_error():
        for folder in given.folders:
            check_path("folder", str(folder))
        if given.into is not None:
            check_path("--into", str(given.into))
        if len(given.folders) > 1 and all(map(_is_run, given.folders)):
            print_comparison(given.folders)
        else:
            print(write_study(*given.folders, into=given.into))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flap study",
        description=(
            "Write the table, the plots and the page of one or several sweeps. "
            "For finished runs, print what differs and whether the difference is noise."
        ),
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="folder",
        help="sweeps, as multirun_outputs/<time>, or at least two runs",
    )
    parser.add_argument(
        "--into",
        type=Path,
        help=(
            "the folder of the page; by default the folder of the sweep, "
            "or A+B beside it for the sweeps A and B"
        ),
    )
    return parser


def _is_run(folder: Path) -> bool:
    return (folder / "report.json").is_file()
