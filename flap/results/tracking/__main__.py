"""The command `python -m flap workspace <entity/project> <folder> …`: the W&B workspace of sweeps."""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Save the workspace and print where it is; on an error, print one line and exit with code 1."""
    description = "The W&B workspace of sweeps that were run with tracking=wandb; offline, the file workspace.json."
    parser = argparse.ArgumentParser(prog="python -m flap workspace", description=description)
    parser.add_argument("place", metavar="entity/project", help="where W&B has the runs")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="folder", help="the folder of a sweep: multirun_outputs/<time>"
    )
    given = parser.parse_args(arguments)
    from flap.results.tracking.workspace import save_workspace  # here: --help should not wait seconds for it

    try:
        print(save_workspace(given.place, given.folders))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
