"""What calibration costs: `python benchmarks/calibration.py`.

Time: collecting statistics over a bare forward pass of the same decoder on the same tokens, interleaved in one
process, median of the pairwise ratios (target: at most 1.05). Memory: peak over the loaded model, in fresh processes,
for 64 and for 1024 samples (target: within 5 % of each other).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flap.calibration import collect
from flap.config import ModelConfig
from flap.data import Pool, read_text
from flap.models import PlacedModel, find_model
from flap.storage import cache_root

SEQ_LEN, BATCH_SIZE = 128, 8
MEMORY_BATCH_SIZE = 64  # a peak well above the few MiB by which any process drifts


def load(num_samples: int) -> tuple[PlacedModel, Tensor]:
    source = find_model(ModelConfig("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), cache_root(None), False)
    text = read_text("boolq-passages", "calibration", "calibration.dataset")
    return source.open(), Pool(text, source.tokenizer, bos=False).draw(num_samples, SEQ_LEN, seed=0)


@torch.no_grad()
def bare_forward(model: PlacedModel, tokens_NT: Tensor) -> None:
    for batch_NT in tokens_NT.split(BATCH_SIZE):
        model.adapter.decoder(input_ids=batch_NT.to(model.device), use_cache=False)


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def time_ratio(num_samples: int, repeats: int) -> float:
    model, tokens_NT = load(num_samples)
    bare_forward(model, tokens_NT)  # warm-up
    ratios = []
    for _ in range(repeats):
        bare = seconds(lambda: bare_forward(model, tokens_NT))
        calibrated = seconds(lambda: collect(model, [tokens_NT], BATCH_SIZE))
        ratios.append(calibrated / bare)
        print(f"bare forward {bare:6.2f} s   calibration {calibrated:6.2f} s   ratio {ratios[-1]:.3f}", flush=True)
    return statistics.median(ratios)


def status_bytes(field: str) -> int:
    """A size from /proc/self/status: VmRSS is held now, VmHWM the peak since the last reset (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_over_model(num_samples: int) -> None:
    """Run in its own process: prints peak memory of calibration beyond that of the loaded model, in bytes."""
    model, tokens_NT = load(num_samples)
    # safetensors maps the file: a weight (a row of the embeddings, even) is in memory once something has read it
    for parameter in model.model.parameters():
        parameter.sum()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading has raised
    loaded = status_bytes("VmRSS")
    collect(model, [tokens_NT], MEMORY_BATCH_SIZE)
    print(f"over-model-bytes {status_bytes('VmHWM') - loaded}")


def measure_memory(num_samples: int) -> int:
    command = [sys.executable, __file__, "--memory", str(num_samples)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(output.split("over-model-bytes ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=32, help="windows per timed pass")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory_over_model(options.memory)
        return
    ratio = time_ratio(options.samples, options.repeats)
    print(f"calibration / bare forward, median of {options.repeats}: {ratio:.3f} (target <= 1.05)")
    few, many = measure_memory(64), measure_memory(1024)
    print(f"peak over the model: 64 samples {few / 2**20:.0f} MiB, 1024 samples {many / 2**20:.0f} MiB, "
          f"ratio {many / few:.3f} (target within 5 %)")  # fmt: skip


if __name__ == "__main__":
    main()
