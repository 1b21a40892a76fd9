"""What quality costs: `python benchmarks/quality_cost.py` (SmolLM2-135M).

Time: a whole `pipeline.run` without evaluation, over a bare forward pass of the same
decoder on the same tokens, interleaved in one process, median of the pairwise ratios. Nothing comes from a cache.
`--clock cpu` counts the seconds that the process itself had, where others share the machine; it misses the disk's.
Targets: bias at most 1.1, linear 2; flap_plus by its search, which is printed. Memory: peak over the loaded model, in
fresh processes.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from calibration import SEQ_LEN, bare_forward, status_bytes
from hydra import compose, initialize_config_dir
from transformers import PreTrainedModel

from flap.config import FlapConfig, config_dir, typed
from flap.config.schema import DTYPES
from flap.models import LoadedSource, find_model
from flap.pipeline import run
from flap.runs import choose
from flap.runs.prepare import prepare
from flap.search import Search
from flap.storage import cache_root

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Variant:
    """One way to prune, and what it may take in bare forward passes; None: what its search takes."""

    overrides: tuple[str, ...]
    target: float | None


VARIANTS = {
    "bias": Variant((), 1.1),
    "linear": Variant(("compensation=linear",), 2.0),
    "closed form": Variant(("metric=OBS", "structure.scale=relative", "compensation=linear"), 2.0),
    "flap_plus": Variant(("method=flap_plus",), 12.0),
}


def composed(variant: Variant, options: argparse.Namespace) -> FlapConfig:
    """The checked config that the command line would make; nothing is measured, saved or kept."""
    sizes = [
        "calibration=boolq-passages",
        f"calibration.num_samples={options.samples}",
        f"calibration.seq_len={SEQ_LEN}",
    ]
    rest = ["run_name=quality_cost", f"model.dtype={options.dtype}", f"ratio={options.ratio}"]
    alone = ["eval=none", "checkpoint.save=false", "use_cache=false"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return typed(compose("config", [*variant.overrides, *sizes, *rest, *alone]))


def load(options: argparse.Namespace) -> LoadedSource:
    source = find_model(composed(VARIANTS["bias"], options).model, cache_root(None), False)
    model: PreTrainedModel = source.open().model
    for parameter in model.parameters():  # a mapped weight is in memory once something has read it
        parameter.sum()
    return LoadedSource(model, source.tokenizer)


def time_ratio(name: str, config: FlapConfig, source: LoadedSource, clock: Callable[[], float]) -> float:
    """Seconds to prune over those of a bare forward pass right before it."""
    windows = prepare(config, None, source).windows
    assert windows is not None
    start = clock()
    bare_forward(source.open(), windows.by_length[0])
    between = clock()
    report = run(config, None, source=source)
    bare, pruned = between - start, clock() - between
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in report.seconds.items())
    print(f"{name:14} bare {bare:6.2f} s   pruned {pruned:7.2f} s ({stages})   ratio {pruned / bare:.2f}", flush=True)
    return pruned / bare


def time_ratios(names: list[str], options: argparse.Namespace) -> dict[str, float]:
    """The median ratio of each variant; every repeat prunes a fresh copy of the model."""
    dense = load(options)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _, name in product(range(options.repeats), names):
        source = LoadedSource(deepcopy(dense.model), dense.tokenizer)
        ratios[name].append(time_ratio(name, composed(VARIANTS[name], options), source, CLOCKS[options.clock]))
    return {name: statistics.median(measured) for name, measured in ratios.items()}


def memory_over_model(name: str, options: argparse.Namespace) -> None:
    """Run in its own process: prints the peak memory of pruning beyond that of the loaded model, in bytes (Linux)."""
    source = load(options)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading has raised
    loaded = status_bytes("VmRSS")
    run(composed(VARIANTS[name], options), None, source=source)
    print(f"over-model-bytes {status_bytes('VmHWM') - loaded}")


def measure_memory(name: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", name]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(output.split("over-model-bytes ")[1].split()[0])


def search_budget(name: str, options: argparse.Namespace) -> str:
    """What is searched with, where something is."""
    structure = choose(composed(VARIANTS[name], options)).structure
    if not isinstance(structure, Search):
        return ""
    return "search: " + ", ".join(f"{key}={value}" for key, value in asdict(structure).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64, help=f"windows of {SEQ_LEN} tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
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
        peak, target = measure_memory(name) / 2**20, VARIANTS[name].target
        allowed = "-" if target is None else f"{target:.1f}"
        print(f"{name:14} {ratio:7.2f} {allowed:>7} {peak:31.0f}   {search_budget(name, options)}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
