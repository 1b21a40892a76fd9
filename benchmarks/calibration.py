"""Measure the time and the memory of calibration: `python benchmarks/calibration.py`.

To measure the time, the script divides the seconds of the stage `calibrate` of `flap.prune` by the
seconds of a bare forward pass. A bare forward pass runs the same decoder on the same number of
tokens without flap. One process repeats the forward pass and the calibration alternately. The
result is the median of the quotients (target: at most 1.05).

The script also measures by how much the peak memory of pruning exceeds the memory of the loaded
model. One new process measures this difference with 64 calibration windows, and another new process
measures it with 1,024 windows (target: the two differences deviate by at most 5 % from each other).
"""

import argparse
import statistics
import subprocess
import sys
import time
from copy import deepcopy
from typing import Any

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

# windows in a batch when memory is measured; large, so that a few MiB hardly change the peak
MEMORY_BATCH_SIZE = 64


def calibrate_seconds(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_samples: int, batch_size: int
) -> float:
    windows: dict[str, Any] = {
        "num_samples": num_samples,
        "seq_len": SEQ_LEN,
        "batch_size": batch_size,
    }
    report = flap.prune(
        model, tokenizer, ratio=0.2, overrides=("calibration=boolq-passages",), **windows
    )
    return report.seconds["calibrate"]


def time_ratio(num_samples: int, repeats: int) -> float:
    source = packaged()
    model = loaded(source)
    tokens_NT = random_windows(model, num_samples)
    bare_forward(model, tokens_NT)  # a warm-up, which is not measured
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        bare_forward(model, tokens_NT)
        bare = time.perf_counter() - start
        calibrated = calibrate_seconds(deepcopy(model), source.tokenizer, num_samples, BATCH_SIZE)
        ratios.append(calibrated / bare)
        print(
            f"bare forward {bare:6.2f} s   calibration {calibrated:6.2f} s   "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    return statistics.median(ratios)


def memory_over_model(num_samples: int) -> None:
    """Print by how many bytes the peak memory of pruning exceeds the memory of the loaded model.

    Call this function in a new process, because the peak memory of the whole process is measured.
    The function works only on Linux.
    """
    source = packaged()
    model = loaded(source)
    held = reset_peak()
    calibrate_seconds(model, source.tokenizer, num_samples, MEMORY_BATCH_SIZE)
    print(f"over-model-bytes {status_bytes('VmHWM') - held}")


def measure_memory(num_samples: int) -> int:
    command = [sys.executable, __file__, "--memory", str(num_samples)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
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
    few = measure_memory(64)
    many = measure_memory(1024)
    print(
        f"peak over the model: 64 samples {few / 2**20:.0f} MiB, "
        f"1024 samples {many / 2**20:.0f} MiB, ratio {many / few:.3f} (target within 5 %)"
    )


if __name__ == "__main__":
    main()
