"""The command `python -m flap.study <folder>`: write the table, plots and page of a sweep."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Write the study and print the page's path; on an error, print one line and exit with code 1."""
    parser = argparse.ArgumentParser(prog="python -m flap.study", description="The table, plots and page of a sweep.")
    parser.add_argument("folder", type=Path, help="the folder of a sweep: multirun_outputs/<time>")
    folder = parser.parse_args(arguments).folder
    from flap.study.write import write_study  # here: --help should not wait seconds for it

    try:
        print(write_study(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
