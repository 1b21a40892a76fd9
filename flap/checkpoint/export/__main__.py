"""The command `python -m flap export CHECKPOINT FORMAT`.

It converts a checkpoint to the format of an inference engine.
"""

import argparse
import sys
from pathlib import Path

from flap.config.paths import check_path
from flap.storage.status import exit_on_error

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def main(arguments: list[str] | None = None) -> None:
    """Export a checkpoint, and print the path of the exported file or folder.

    On an error, print one line and exit with code 1.
    """
    options = _parser().parse_args(arguments)
    # imported here, so that --help and usage errors do not wait seconds for this import
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    with exit_on_error():
        check_path("checkpoint", str(options.checkpoint))
        print(_export(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flap export",
        description="Write a checkpoint in the format of another engine.",
    )
    parser.add_argument("checkpoint", type=Path, help="the directory that a run has written")
    formats = parser.add_subparsers(dest="format", required=True)
    gguf = formats.add_parser("gguf", help="a file for llama.cpp")
    gguf.add_argument(
        "--type",
        choices=GGUF_TYPES,
        default="f16",
        help="the data type of the matrices (default: f16)",
    )
    formats.add_parser("mlx", help="a folder for mlx-lm")
    formats.add_parser("onnx", help="a graph for ONNX Runtime")
    formats.add_parser("openvino", help="a graph for OpenVINO")
    return parser


def _export(options: argparse.Namespace) -> Path:
    """Export the checkpoint, and return the path of the exported file or folder.

    Only the modules that the requested format needs are imported.
    """
    if options.format == "gguf":
        from flap.checkpoint.export.gguf.export import export_gguf

        return export_gguf(options.checkpoint, options.type)

    if options.format == "mlx":
        from flap.checkpoint.export.mlx.export import export_mlx

        return export_mlx(options.checkpoint)

    from flap.checkpoint.export.graph import export_graph

    print(f"{options.format}: tracing the model, which takes minutes", file=sys.stderr)
    return export_graph(options.checkpoint, options.format)


if __name__ == "__main__":
    main()
