"""The command `python -m flap.study <folder> …`: write, or serve, the table, plots and page of one or more sweeps.

`promote` measures the best cells of a sweep in full; `--all` lists the studies below a folder.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flap.storage.study_list import list_studies


def main(arguments: list[str] | None = None) -> None:
    """Write the study and print the page's path; on an error, print one line and exit with code 1."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["promote"]:
        _promote(words[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m flap.study",
        description="The table, plots and page of sweeps. `python -m flap.study promote --help`: measuring the best.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="folder", help="the folder of a sweep: multirun_outputs/<time>"
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--into", type=Path, help="the folder of the page; default: the sweep's, or A+B beside it for sweeps A and B"
    )
    either.add_argument("--serve", action="store_true", help="show the page of running sweeps; nothing is written")
    either.add_argument("--all", action="store_true", help="list all studies below the folder, or multirun_outputs")
    parser.add_argument("--port", type=int, default=8000, help="of the served page, on 127.0.0.1; 0: any free one")
    given = parser.parse_args(words)
    if not given.folders and not given.all:
        parser.error("the following arguments are required: folder")
    with _one_line_errors():
        if given.all:
            print(*list_studies(given.folders or [Path("multirun_outputs")]), sep="\n")
            return
        # here: --help should not wait seconds for them
        from flap.results.serve import serve
        from flap.results.study_files import write_study

        if given.serve:
            serve(given.folders, given.port)
        else:
            print(write_study(*given.folders, into=given.into))


def _promote(words: list[str]) -> None:
    """Measure the best cells of a sweep in full, and print their names and the page's path."""
    parser = argparse.ArgumentParser(
        prog="python -m flap.study promote",
        description="Measure the best cells of a sweep in full, on the checkpoints that they have saved.",
    )
    parser.add_argument("folder", type=Path, help="the folder of a sweep: multirun_outputs/<time>")
    parser.add_argument(
        "options", nargs="+", metavar="KEY=VALUE",
        help="by=NUMBER: which cells are best, as 'zero_shot/average'; top=3: so many of each model and ratio, and "
        "those within the noise of the best; what to measure: 'eval=[zero_shot]', eval.zero_shot.limit=200",
    )  # fmt: skip
    given = parser.parse_args(words)
    with _one_line_errors():
        from flap.results.study_files import write_study
        from flap.sweeps.promote import promote

        print(*promote(given.folder, given.options), sep="\n")
        print(write_study(given.folder))


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
