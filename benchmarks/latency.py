"""How near a target in time comes to what is asked: the packaged model, on the device at hand.

    python benchmarks/latency.py --shares 0.8 0.6 0.5 --prefill 64 --decode 16 --repeats 5

For each share of the dense model's latency the model is pruned with `target.latency_ms=`, by magnitudes, and requests
are timed in turns with the dense model. Printed: asked, by the table of layer times, and measured, in milliseconds; the
measured one is the median of its ratios to the dense model, times the dense latency of the table.
`--clock cpu` counts the seconds that the process itself had, where others share the machine (with OMP_NUM_THREADS=1).
"""

import argparse
import time
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import packaged

import flap


def pruned(options: argparse.Namespace, cache: str, **amount: Any) -> Any:
    """Prune a fresh copy and return the report; the times of layers are measured once, and come from the cache then."""
    request = {"prefill_len": options.prefill, "decode_len": options.decode, "repeats": options.repeats}
    timed = ["eval=efficiency", *(f"eval.efficiency.{name}={value}" for name, value in request.items())]
    source = packaged()
    overrides = (*timed, "use_cache=true", f"cache_dir={cache}")
    return flap.prune(
        source.open().model, source.tokenizer, metric="magnitude", compensation="none", overrides=overrides, **amount
    )


def row(share: float, report: Any) -> str:
    """The line of one share: asked, by the table, measured."""
    latency = report.target["latency_ms"]
    measured = latency["dense"] * report.evaluation["pruned"]["efficiency/latency_ms_ratio"]
    numbers = f"{latency['asked']:.0f} | {latency['realised']:.0f} | {measured:.0f}"
    off, removed = measured / latency["asked"] - 1, report.ratio["realised_decoder"]
    return f"{share:.2f} | {numbers} | {off:+.1%} | {removed:.1%}"


def main() -> None:
    """Time the dense model, then a plan for each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.6, 0.5])
    parser.add_argument("--prefill", type=int, default=64)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    if options.clock == "cpu":
        time.perf_counter = time.process_time
    with TemporaryDirectory() as cache:
        whole = pruned(options, cache, ratio=0.0).evaluation["dense"]["efficiency/latency_ms"]
        first = pruned(options, cache, target={"latency_ms": 0.9 * whole})  # which times the layers
        dense = first.target["latency_ms"]["dense"]
        print(f"{first.device}, {torch.get_num_threads()} threads; dense {dense:.0f} ms", flush=True)
        print("share | asked | by the table | measured | off by | removed")
        for share in options.shares:
            print(row(share, pruned(options, cache, target={"latency_ms": share * dense})), flush=True)


if __name__ == "__main__":
    main()
