"""The command `python -m flap.compare A B [C …]`: runs, checkpoints or plans side by side, as text and as a page."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison and write its page, if asked for; on an error, print one line and exit with code 1."""
    parser = argparse.ArgumentParser(prog="python -m flap.compare", description="Two runs or more, side by side.")
    parser.add_argument("paths", type=Path, nargs="+", metavar="path", help="a run's folder, a checkpoint, a plan.json")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="write a self-contained page, too")
    options = parser.parse_args(arguments)
    from flap.results.comparison import compare, show  # here: --help should not wait seconds for them
    from flap.results.pages import write_comparison

    try:
        comparison = compare(options.paths)
        show(comparison)
        if options.page is not None:
            print(write_comparison(comparison, options.page))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
