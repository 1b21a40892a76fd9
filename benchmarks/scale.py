"""Measure the memory and time to prune a model from disk: `python benchmarks/scale.py`.

The script needs Linux, 10 GB of disk and half an hour. It writes LLaMA models with random weights
and grouped-query attention, which differ only in their number of layers. In a new process for each
model, it then removes 30 % of the decoder's weights with model.placement=stream. The calibration
text is 16 windows of 128 tokens.

The table shows the peak of the process's resident memory, minus the peak of an interpreter that has
only imported torch. The peak (the kernel's VmHWM) includes memory-mapped files. The column
`anonymous` shows the peak without memory-mapped files (the largest value of the kernel's RssAnon,
read every 20 ms). The target is a peak of at most 1.2 GB for the largest model, and about the same
peak for all models. GB are 10^9 bytes.

`--shape mixtral` and `--shape qwen3_moe` prune a mixture of experts. `--shape qwen3-30b-a3b` prunes
a model with four layers of the shape of Qwen3-30B-A3B. The script passes all other arguments on to
flap, as in `--gb 1 --shape mixtral method=flap_plus`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from runpy import run_module
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

# Config values that all models share, unless the shape of a model sets another value. The
# vocabulary has the size of SmolLM2's, because the models use SmolLM2's tokenizer.
ENDS = {
    "vocab_size": 49152,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "head_dim": 64,
}
# The layers of Llama-3.2-1B have 60.8 million parameters each (121.6 MB in bfloat16).
LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# MIXTRAL and QWEN3_MOE are mixtures of experts with 53 million parameters in each layer. The router
# sends a token to a quarter of the experts (MIXTRAL), or to an eighth of them (QWEN3_MOE).
MIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN3_MOE = {
    "hidden_size": 1024,
    "moe_intermediate_size": 256,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
# The layers of Qwen3-30B-A3B have 622 million parameters each, 1.24 GB in bfloat16.
QWEN3_30B = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
LAYERS = {1: 5, 2: 13, 4: 30}
LAYERS_OF_EXPERTS = {1: 8, 2: 17, 4: 36}
# For each shape: the model type, the config values in addition to `ENDS`, and a dict from the size
# of the weights in GB to the number of decoder layers that a model of about this size has.
SHAPES: dict[str, tuple[str, dict[str, Any], dict[int, int]]] = {
    "llama": ("llama", LLAMA, LAYERS),
    "mixtral": ("mixtral", MIXTRAL, LAYERS_OF_EXPERTS),
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE, LAYERS_OF_EXPERTS),
    "qwen3-30b-a3b": ("qwen3_moe", QWEN3_30B, {5: 4}),
}
COLUMNS = (
    "weights, GB",
    "layers",
    "peak over bare, GB",
    "/ weights",
    "anonymous, GB",
    "disk, GB",
    "seconds",
    "CPU seconds",
    "CPU seconds / GB",
    "ratio",
    "logits reloaded",
)
RUN = ["model.name=random", "model.placement=stream", "ratio=0.3", "eval=[none]"]
WINDOWS = ["calibration=boolq-passages", "calibration.num_samples=16", "calibration.seq_len=128"]


def write_model(directory: Path, shape: str, num_layers: int) -> int:
    """Write a model with random weights, and return the number of bytes of its weights.

    The weights of each layer are in a separate file, and all other weights are in one further file.
    Only the weights of one file are in memory at a time.
    """
    import torch
    from measuring import packaged
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    tokenizer = packaged("cpu").tokenizer
    # The export to GGUF recognises SmolLM's tokenizer by these two pre-tokenizer steps. They are
    # set here, because transformers does not read the first step from the packaged GGUF file.
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.save_pretrained(directory)
    model_type, own, _ = SHAPES[shape]
    config = AutoConfig.for_model(
        model_type, **ENDS | own, num_hidden_layers=num_layers, dtype="bfloat16"
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    num_bytes = 0
    weight_map: dict[str, str] = {}
    for part in ["rest", *range(num_layers)]:
        inside = f"model.layers.{part}." if part != "rest" else ""
        names = [
            name
            for name in shapes
            if (name.startswith(inside) if inside else ".layers." not in name)
        ]
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16) for name in names}
        for name, tensor in tensors.items():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=generator)
        tensors = {
            name: tensor.contiguous()
            for name, tensor in revert_weight_conversion(model, tensors).items()
        }
        save_file(tensors, directory / f"model-{part}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"model-{part}.safetensors")
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map})
    )
    return num_bytes


def prune(directory: Path, arguments: list[str]) -> None:
    """Run flap in this process, and then print the processor time and the peak memory.

    arguments: options of flap. They replace the options with the same names in RUN and WINDOWS.
    """
    chosen = {argument.split("=")[0] for argument in arguments}
    usual = [argument for argument in (*RUN, *WINDOWS) if argument.split("=")[0] not in chosen]
    sys.argv = ["flap", f"model.path={directory / 'dense'}", f"cache_dir={directory / 'cache'}"]
    sys.argv += [f"hydra.run.dir={directory / 'run'}", *usual, *arguments]
    run_module("flap", run_name="__main__")
    print(f"cpu {time.process_time()}\npeak {peak_bytes()}")


def peak_bytes() -> int:
    """Return the peak of this process's resident memory until now, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def disk_bytes(*folders: Path) -> int:
    """Return the disk space in bytes that the files in these folders use at this moment.

    A file with several hard links counts once.
    """
    sizes: dict[tuple[int, int], int] = {}
    # The run may delete a folder while os.walk visits it. The error need not be caught here,
    # because os.walk ignores it.
    for folder, _, names in chain.from_iterable(map(os.walk, folders)):
        for name in names:
            with suppress(OSError):  # the run may have deleted the file in the meantime
                found = Path(folder, name).stat()
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


class Watched(NamedTuple):
    """The largest memory and disk use of a process, and what it has printed."""

    peak: int  # largest resident memory in bytes
    anonymous: int  # largest resident memory that is not mapped from a file, in bytes
    disk: int  # largest size of the watched folders in bytes
    output: str  # standard output of the process


def watched(*arguments: str, folders: Sequence[Path] = ()) -> Watched:
    """Run this script in a new process; return its largest memory and disk use, and its output.

    arguments: the command line of the new process.
    folders: the folders in which the process writes files.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    anonymous = disk = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        anonymous = max(
            [
                anonymous,
                *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")),
            ]
        )
        disk = max(disk, disk_bytes(*folders))
        time.sleep(0.02)
    assert process.stdout is not None
    output = process.stdout.read()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return Watched(int(output.split("peak ")[-1].split()[0]), anonymous, disk, output)


def measure(directory: Path, shape: str, size: int, bare: Watched, options: list[str]) -> None:
    """Write, prune and reload a model, and print its row of the table.

    size: the size of the weights in GB.
    bare: the memory of an interpreter that has only imported torch.
    options: options of flap.
    """
    layers = SHAPES[shape][2][size]
    num_bytes = int(
        watched("--write", str(directory), shape, str(layers)).output.split("bytes ")[1].split()[0]
    )
    start = time.perf_counter()
    folders = directory / "run", directory / "cache"
    peak, anonymous, disk, output = watched("--prune", str(directory), *options, folders=folders)
    cpu = float(output.split("cpu ")[-1].split()[0])
    seconds = time.perf_counter() - start
    report = json.loads((directory / "run" / "report.json").read_text())
    reloaded = watched("--reload", str(directory)).output.split("logits ")[1].split("\n")[0]
    row = [
        f"{num_bytes / 1e9:.2f}",
        f"{layers}",
        f"{(peak - bare.peak) / 1e9:.2f}",
        f"{(peak - bare.peak) / num_bytes:.2f}",
        f"{(anonymous - bare.anonymous) / 1e9:.2f}",
        f"{disk / 1e9:.2f}",
        f"{seconds:.0f}",
        f"{cpu:.0f}",
        f"{cpu * 1e9 / num_bytes:.0f}",
        f"{report['ratio']['realised_decoder']:.4f}",
        reloaded,
    ]
    print("|", " | ".join(row), "|", flush=True)


def reload(directory: Path) -> None:
    """Load the pruned checkpoint, run it once, and print whether its logits are finite."""
    import torch

    from flap import load

    logits = load(directory / "run" / "checkpoint")(torch.arange(8)[None]).logits
    print(f"logits {'finite' if logits.isfinite().all() else 'NOT FINITE'}\npeak 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=int, nargs="+", help="of weights; all that the shape has")
    parser.add_argument("--shape", default="llama", choices=SHAPES)
    parser.add_argument("--folder", help="where the models are written; removed afterwards")
    for hidden in ("--write", "--prune", "--reload"):
        parser.add_argument(hidden, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    chosen, options = parser.parse_known_args()
    if chosen.write:
        directory, shape, layers = chosen.write
        print(f"bytes {write_model(Path(directory) / 'dense', shape, int(layers))}\npeak 0")
    elif chosen.prune:
        prune(Path(chosen.prune[0]), [*chosen.prune[1:], *options])
    elif chosen.reload:
        reload(Path(chosen.reload[0]))
    elif chosen.bare:
        import torch  # noqa: F401

        print(f"peak {peak_bytes()}")
        time.sleep(0.5)  # so that the parent process has time to read the memory of this process
    else:
        bare = watched("--bare")
        print(
            f"bare interpreter with torch: {bare.peak / 1e9:.2f} GB, of it "
            f"{bare.anonymous / 1e9:.2f} GB anonymous\n"
        )
        print("|", " | ".join(COLUMNS), "|")
        print("|" + "---|" * len(COLUMNS), flush=True)
        for size in chosen.gb or SHAPES[chosen.shape][2]:
            with TemporaryDirectory(dir=chosen.folder) as folder:
                measure(Path(folder), chosen.shape, size, bare, options)


if __name__ == "__main__":
    main()
