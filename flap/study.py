"""The command `python -m flap.study <folder> …`: write the table, plots and page of one or more sweeps."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Write the study and print the page's path; on an error, print one line and exit with code 1."""
    parser = argparse.ArgumentParser(prog="python -m flap.study", description="The table, plots and page of sweeps.")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="folder", help="the folder of a sweep: multirun_outputs/<time>"
    )
    parser.add_argument(
        "--into", type=Path, help="the folder of the page; default: the sweep's, or A+B beside it for sweeps A and B"
    )
    given = parser.parse_args(arguments)
    with _one_line_errors():
        # here: --help should not wait seconds for them
        from flap.results.study_files import write_study

        print(write_study(*given.folders, into=given.into))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Print an error of the block in one line, and exit with code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
