"""`python -m flap.study <folder>`: the table, plots and page of a sweep, made from what its cells left."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Print the page's path; exit code 1 and one line where the folder holds no study."""
    parser = argparse.ArgumentParser(prog="python -m flap.study", description="The table, plots and page of a sweep.")
    parser.add_argument("folder", type=Path, help="the folder of a sweep: multirun_outputs/<time>")
    folder = parser.parse_args(arguments).folder
    from flap.reporting.study import write_study  # seconds that --help need not wait for

    try:
        print(write_study(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
