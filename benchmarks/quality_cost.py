"""Measure the cost of each method on SmolLM2: `python benchmarks/quality_cost.py`.

To measure the time, the script divides the seconds that `flap.prune` takes with a method by the
seconds of a bare forward pass. A bare forward pass runs the same decoder on the same number of
tokens without flap. One process repeats the forward pass and the pruning alternately, without a
cache. The result for a method is the median of the quotients. The table shows this result next to
the target of the method, which is an upper limit.

With `--clock cpu`, the script counts processor seconds of its process instead of wall-clock
seconds. Use `--clock cpu` on a machine that other people use at the same time. Processor seconds do
not include the time in which the process waits for the disk.

In a new process, the script also measures by how much the peak memory of pruning exceeds the memory
of the loaded model.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import time
from copy import deepcopy
from itertools import product
from typing import Any, NamedTuple

import torch
from measuring import (
    BATCH_SIZE,
    SEQ_LEN,
    bare_forward,
    loaded,
    packaged,
    random_windows,
    reset_peak,
    status_bytes,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import flap

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Variant(NamedTuple):
    """Options of `flap.prune`, and a target for the time of pruning with these options."""

    target: float  # the time of pruning should be at most this multiple of a bare forward pass
    choices: dict[str, Any]  # keyword arguments of `flap.prune`
    overrides: tuple[str, ...] = ()


VARIANTS = {
    "bias": Variant(1.1, {}),
    "linear": Variant(2.0, {"compensation": "linear"}),
    "closed form": Variant(
        2.0, {"metric": "OBS", "compensation": "linear"}, ("structure.scale=relative",)
    ),
    "flap_plus": Variant(12.0, {"method": "flap_plus"}),
}


def load(options: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = packaged()
    return loaded(source).to(getattr(torch, options.dtype)), source.tokenizer


def prune(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Prune the model in place, and return the seconds of each stage.

    With `structure=search`, also print the options of the search.
    """
    _, choices, overrides = VARIANTS[name]
    windows: dict[str, Any] = {
        "num_samples": options.samples,
        "seq_len": SEQ_LEN,
        "batch_size": BATCH_SIZE,
    }
    overrides = (*overrides, "calibration=boolq-passages")
    report = flap.prune(
        model, tokenizer, ratio=options.ratio, overrides=overrides, **choices, **windows
    )
    if "levels" in report.config["structure"]:
        print(f"{name}: {report.config['structure']}")
    return report.seconds


def time_ratios(names: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Return for each variant the median of (time of pruning / time of a bare forward pass).

    names: keys of VARIANTS.
    """
    dense, tokenizer = load(options)
    tokens_NT = random_windows(dense, options.samples)
    clock = CLOCKS[options.clock]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _, name in product(range(options.repeats), names):
        model = deepcopy(dense)
        start = clock()
        bare_forward(model, tokens_NT)
        between = clock()
        seconds = prune(name, model, tokenizer, options)
        bare = between - start
        pruned = clock() - between
        stages = ", ".join(f"{stage} {took:.1f}" for stage, took in seconds.items())
        ratios[name].append(pruned / bare)
        print(
            f"{name:14} bare {bare:6.2f} s   pruned {pruned:7.2f} s ({stages})   "
            f"ratio {pruned / bare:.2f}",
            flush=True,
        )
    return {name: statistics.median(measured) for name, measured in ratios.items()}


def memory_over_model(name: str, options: argparse.Namespace) -> None:
    """Print by how many bytes the peak memory of pruning exceeds the memory of the loaded model.

    Call this function in a new process, because the peak memory of the whole process is measured.
    The function works only on Linux.
    """
    model, tokenizer = load(options)
    held = reset_peak()
    prune(name, model, tokenizer, options)
    print(f"over-model-bytes {status_bytes('VmHWM') - held}")


def measure_memory(name: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(output.split("over-model-bytes ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=64, help=f"windows of {SEQ_LEN} tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.memory:
        memory_over_model(options.memory, options)
        return
    ratios = time_ratios(options.variants, options)
    print(f"\n{'':14} {'ratio':>7} {'target':>7} {'peak MiB over the loaded model':>31}")
    for name, ratio in ratios.items():
        print(
            f"{name:14} {ratio:7.2f} {VARIANTS[name].target:7.1f} "
            f"{measure_memory(name) / 2**20:31.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
