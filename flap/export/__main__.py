"""The command `python -m flap.export <checkpoint> gguf`: export a checkpoint as one file for llama.cpp."""

import argparse
import sys
from pathlib import Path

from flap.config import GGUF_TYPES


def main(arguments: list[str] | None = None) -> None:
    """Export a checkpoint and print the file's path; on an error, print one line and exit with code 1."""
    parser = argparse.ArgumentParser(prog="python -m flap.export", description="A checkpoint in another format.")
    parser.add_argument("checkpoint", type=Path, help="the directory that a run wrote")
    parser.add_argument("format", choices=("gguf",))
    parser.add_argument("--type", choices=GGUF_TYPES, default="f16", help="of the matrices; default: f16")
    options = parser.parse_args(arguments)
    # imported here because it takes seconds, and --help should not wait for it
    from transformers.utils.logging import set_verbosity_error

    from flap.export.gguf import export_gguf

    set_verbosity_error()
    try:
        print(export_gguf(options.checkpoint, options.type))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
