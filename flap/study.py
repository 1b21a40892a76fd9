"""The command `python -m flap.study <folder> …`: the table, plots and page of sweeps, or finished runs side by side."""

import argparse
import sys
from io import TextIOWrapper
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Write the study and print the page's path, or print a comparison; on an error, one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m flap.study",
        description="The table, plots and page of sweeps; of finished runs what differs, and whether it is noise.",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="folder",
        help="sweeps, as multirun_outputs/<time>, or two runs or more",
    )
    parser.add_argument(
        "--into",
        type=Path,
        help="the folder of the page; default: the sweep's, or A+B beside it for sweeps A and B",
    )
    given = parser.parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that has not all characters
    # here: --help should not wait seconds for them
    from flap.results.comparison import show
    from flap.results.study_files import write_study
    from flap.storage.status import reason

    try:
        if len(given.folders) > 1 and all(
            (folder / "report.json").is_file() for folder in given.folders
        ):
            show(given.folders)
        else:
            print(write_study(*given.folders, into=given.into))
    except (ValueError, OSError) as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
