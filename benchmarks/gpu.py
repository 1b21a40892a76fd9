"""Measure the time and memory of pruning on a GPU: `python benchmarks/gpu.py`.

`make gpu` first runs the tests with the marker `gpu`, and then this script. The models are random,
in bfloat16, and created on the GPU. There are five steps:

1. A bare forward pass (without flap) of a model with the shape of Llama-2-7B, over as many windows
   as FLAP calibrates on. The vocabulary has 49,152 tokens, as in the packaged tokenizer.
2. `method=flap` (FLAP) on the model of step 1, at a ratio of 0.2.
3. FLAP on a smaller model with model.placement=auto. The script lets accelerate use only so much of
   the GPU's memory that accelerate has to put half of the layers on the host. For comparison, FLAP
   also prunes this smaller model with all layers on the GPU.
4. `method=flap_plus` on a model with the shape of step 1, but only two layers. The script uses the
   time of step 4 to estimate the time of step 5. In steps 4 and 5, the search of flap_plus measures
   fewer tokens than by default.
5. flap_plus on a model with the shape of step 1 and all of its layers.

All steps together may take at most `--minutes` minutes. The script skips step 5 if the remaining
time is shorter than the estimate. When the time is over, the script stops the running step and
skips the steps after it. If a step fails, the steps after it still run. The table and the JSON file
then say which steps did not begin, were stopped or failed.

The seconds of a stage come from the report of the run. The peak memory on the GPU is measured
separately in each step. The peak memory on the host includes all earlier steps, because it is
measured from the start of the process. GB are 10^9 bytes. `--device cpu --tiny` only tests this
script.
"""

import argparse
import gc
import logging
import math
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from measuring import BATCH_SIZE, SEQ_LEN, bare_forward, packaged, random_windows
from psutil import virtual_memory
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import flap
from flap.config import FlapConfig, config_dir, typed
from flap.models import LoadedSource
from flap.pipeline import run

Figures = dict[str, Any]

COMMON = {"vocab_size": 49152, "tie_word_embeddings": False, "max_position_embeddings": 4096}
SEVEN_B = COMMON | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
}
ONE_B = COMMON | {  # the shape of Llama-3.2-1B with half of its layers
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 8,
    "head_dim": 64,
}
TINY = COMMON | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
}
PROBE_LAYERS = 2
# `reckoned` assumes that, for each token, the search of flap_plus takes this many times as long as
# a bare forward pass. The search is slower because it has few windows, so that the GPU often waits
# for the host.
SLOWER = 4
MISSING = ("not_begun", "stopped", "failed")  # reasons why a step has no results
COLUMNS = ("step", "seconds", "of them", "peak GPU, GB", "peak host, GB", "")


class OutOfTimeError(Exception):
    """Raised when a step does not end before its deadline."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise an OutOfTimeError if the `with` block takes longer than `seconds` seconds."""

    def ring(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class StepTable:
    """The table of all steps with their times and peak memory.

    When a step ends, its row is printed, and the JSON file `output` is written again.
    """

    def __init__(self, output: Path, about: Figures, deadline: float) -> None:
        self.output = output
        self.about = about
        self.deadline = deadline
        self.steps: dict[str, Figures] = {}
        print("|", " | ".join(COLUMNS), "|")
        print("|" + "---|" * len(COLUMNS), flush=True)

    def step(self, name: str, work: Callable[[], Figures], needs: float = 0.0) -> Figures:
        """Run a step if enough time is left before the deadline, and return its results.

        work: a function that does the step and returns its results, such as seconds and peak bytes.
        needs: the expected time of the step in seconds. If this time could not be estimated,
            `needs` is infinite, and the step does not run.
        """
        left = max(0.0, self.deadline - time.time())
        self.steps[name] = figures = (
            _attempt(work, left) if left > needs else {"not_begun": _why(needs, left)}
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print("|", " | ".join(_row(name, figures)), "|", flush=True)
        self.output.write_text(dumps(self.about | {"steps": self.steps}, indent=1) + "\n")
        return figures

    @property
    def failed(self) -> bool:
        return any("failed" in figures for figures in self.steps.values())


def _attempt(work: Callable[[], Figures], left: float) -> Figures:
    try:
        with at_most(left):
            return work()
    except OutOfTimeError:
        return {"stopped": f"after {left:.0f} s, when the minutes were over"}
    except Exception as error:  # so that the later steps still run: GPU time is scarce
        traceback.print_exc()
        return {"failed": " ".join(str(error).split())[:300]}


def _why(needs: float, left: float) -> str:
    if math.isinf(needs):
        return "a step that its seconds are estimated from has none"
    return f"{left:.0f} s are left" + (f", and it would take about {needs:.0f}" if needs else "")


def _row(name: str, figures: Figures) -> list[str]:
    missing = next(
        (f"{key.replace('_', ' ')}: {figures[key]}" for key in MISSING if key in figures), None
    )
    if missing:
        return [name, "-", "-", "-", "-", missing]
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in figures["stages"].items())
    peaks = (f"{peak / 1e9:.2f}" if peak else "-" for peak in figures["peak_bytes"].values())
    return [name, f"{figures['seconds']:.1f}", stages or "-", *peaks, figures.get("remark", "")]


def now(device: str) -> float:
    """Wait until the device has finished its work, and return the time."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_model(shape: dict[str, Any], device: str) -> PreTrainedModel:
    """Create a model with random weights on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            LlamaConfig(**shape), dtype=torch.bfloat16
        )
    return model


def composed(options: argparse.Namespace, *overrides: str) -> FlapConfig:
    """Return the checked config of a run that evaluates, saves and caches nothing."""
    model = ["model.name=random", "model.path=random", f"model.device={options.device}"]
    sizes = [
        "calibration=boolq-passages",
        f"calibration.seq_len={SEQ_LEN}",
        f"calibration.batch_size={BATCH_SIZE}",
        "ratio=0.2",
        "run_name=gpu",
    ]
    alone = ["eval=none", "checkpoint.save=false", "use_cache=false"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return typed(compose("config", [*overrides, *model, *sizes, *alone]))


def flap_config(options: argparse.Namespace) -> FlapConfig:
    return composed(options, f"calibration.num_samples={options.windows}")


def flap_plus_config(options: argparse.Namespace) -> FlapConfig:
    few = [f"calibration.num_samples={options.samples}", f"structure.tokens={options.tokens}"]
    return composed(options, "method=flap_plus", *few)


def bare(model: PreTrainedModel, num_windows: int, device: str) -> Figures:
    """Measure a forward pass of the decoder over `num_windows` windows, after a warm-up."""
    tokens_NT = random_windows(model, num_windows)
    bare_forward(model, tokens_NT[:BATCH_SIZE])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = now(device)
    bare_forward(model, tokens_NT)
    seconds = now(device) - start
    weights = sum(parameter.nbytes for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "seconds": seconds,
        "stages": {},
        "peak_bytes": {"device": peak, "host": None},
        "weight_bytes": weights,
        "tokens": tokens_NT.numel(),
        "remark": f"{tokens_NT.numel()} tokens, weights of {weights / 1e9:.2f} GB",
    }


def prune(config: FlapConfig, source: LoadedSource, run_dir: Path | None = None) -> Figures:
    """Prune the model of `source`, and measure the stages of the run.

    The measured time does not include the stages that load the dense model and evaluate the pruned
    model.
    """
    report = run(config, run_dir, source=source)
    stages = {
        stage: took
        for stage, took in report.seconds.items()
        if stage not in ("load", "evaluate", "total")
    }
    return {
        "seconds": sum(stages.values()),
        "stages": stages,
        "peak_bytes": {name: report.peak_memory_bytes[name] for name in ("device", "host")},
        "realised_ratio": report.ratio["realised_decoder"],
        "device_map": report.device_map,
        "versions": report.versions,
        "git": report.git,
    }


def over_gpu_and_host(source: LoadedSource, config: FlapConfig, scratch: str | None) -> Figures:
    """Measure FLAP with model.placement=auto and half of the layers outside the device's memory.

    The entry `remark` of the result compares this run with a run that has all layers on the device.
    """
    with TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        source.model.save_pretrained(folder / "dense")
        memory = half_the_layers(source.model, config.model.device)
        source.model.to("meta")  # free the GPU; both runs below read weights from files
        whole = LoadedSource(flap.load(folder / "dense").to(config.model.device), source.tokenizer)
        alone = prune(config, whole, folder / "device")
        del whole
        placing = {
            "device_map": "auto",
            "max_memory": memory,
            "offload_folder": str(folder / "disk"),
        }
        spread = LoadedSource(flap.load(folder / "dense", **placing), source.tokenizer)
        on_auto = replace(config, model=replace(config.model, placement="auto"))
        figures = prune(on_auto, spread, folder / "auto")
        plans = [(folder / place / "plan.json").read_bytes() for place in ("device", "auto")]
    places = Counter(figures["device_map"].values())
    if len(places) < 2:
        raise RuntimeError(f"accelerate put all of the model in one place: {figures['device_map']}")
    same = plans[0] == plans[1]
    slower = figures["seconds"] / alone["seconds"]
    where = ", ".join(f"{count} modules on {place}" for place, count in places.items())
    remark = (
        f"{where}; {slower:.1f} times the seconds of the device alone, plan "
        f"{'equal' if same else 'DIFFERS'}"
    )
    return figures | {
        "device_alone": alone,
        "plan_equal": same,
        "max_memory": memory,
        "remark": remark,
    }


def half_the_layers(model: PreTrainedModel, device: str) -> dict[int | str, int]:
    """Return the bytes that accelerate may use on the device and on the host.

    The bytes on the device are enough for the embedding and half of the layers. They also include
    the bytes of the largest module, because accelerate always keeps this many bytes free. If the
    device is a GPU, the bytes on the host are 90 % of the available memory.
    """
    ends = model.get_output_embeddings().weight.nbytes
    layers = [
        sum(parameter.nbytes for parameter in layer.parameters()) for layer in model.model.layers
    ]
    of_device = ends + max(ends, *layers) + sum(layers) // 2
    if device == "cpu":
        return {"cpu": of_device}  # the other half of the layers stay on the disk
    return {0: of_device, "cpu": virtual_memory().available * 9 // 10}


def reckoned(probe: Figures, passed: Figures, num_layers: int, config: FlapConfig) -> float:
    """Estimate the seconds of flap_plus on a model with `num_layers` layers.

    The estimate is a sum of two times. The first is the time of the least-squares fits: the time of
    `probe` (flap_plus on PROBE_LAYERS layers), multiplied by `num_layers` / PROBE_LAYERS. The
    second is the time of the search's trials. Each trial prunes a part of one layer, and then runs
    the windows through all later layers. The time of these passes is estimated from `passed`, the
    results of a bare forward pass. If the step that measures `probe` or the step that measures
    `passed` was not completed, the estimate is infinite.
    """
    if "seconds" not in probe or "seconds" not in passed:
        return math.inf
    search = config.structure
    # for each level, each layer has one trial that prunes its attention and one that prunes its MLP
    plans = 2 * len(search["levels"])
    passes = plans * num_layers / 2 * search["tokens"] / passed["tokens"]
    return float(probe["seconds"] * num_layers / PROBE_LAYERS + SLOWER * passes * passed["seconds"])


def measure(table: StepTable, options: argparse.Namespace) -> None:
    """Run all steps. Each step creates a new model, because pruning changes the model."""
    large, small = (TINY, TINY) if options.tiny else (SEVEN_B, ONE_B)
    tokenizer = packaged("cpu").tokenizer
    config = flap_config(options)
    config_plus = flap_plus_config(options)

    def made(shape: dict[str, Any]) -> LoadedSource:
        return LoadedSource(random_model(shape, options.device), tokenizer)

    def flap() -> Figures:
        figures = prune(config, made(large))
        times = figures["seconds"] / passed["seconds"] if "seconds" in passed else math.nan
        return figures | {"remark": f"{times:.2f} bare passes"}

    def flap_plus(shape: dict[str, Any]) -> Figures:
        return prune(config_plus, made(shape)) | {"remark": f"{options.tokens} tokens"}

    few = large | {"num_hidden_layers": PROBE_LAYERS}
    passed = table.step(
        "bare forward pass",
        lambda: bare(random_model(large, options.device), options.windows, options.device),
    )
    table.step("FLAP", flap)
    table.step(
        "FLAP, placement auto", lambda: over_gpu_and_host(made(small), config, options.folder)
    )
    probe = table.step(f"flap_plus, {PROBE_LAYERS} layers", lambda: flap_plus(few))
    table.step(
        "flap_plus",
        lambda: flap_plus(large),
        reckoned(probe, passed, large["num_hidden_layers"], config_plus),
    )


def circumstances(options: argparse.Namespace) -> Figures:
    """Return the device, the versions, the options and the date of the measurement."""
    device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="four small layers and few windows, to try the code"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="all steps end within this time")
    parser.add_argument(
        "--since",
        type=float,
        default=time.time(),
        help="when this time began, in seconds since the epoch",
    )
    parser.add_argument(
        "--windows",
        type=int,
        help=f"FLAP's windows of {SEQ_LEN} tokens; default: the paper's 1024; tiny: 16",
    )
    parser.add_argument("--samples", type=int, help="flap_plus's windows; default: 128; tiny: 16")
    parser.add_argument(
        "--tokens",
        type=int,
        help="tokens that its search compares predictions on; default: 512; tiny: 128",
    )
    parser.add_argument(
        "--folder", help="where a model of 1.4 GB is stored for a while; default: the system's"
    )
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu is for trying the code: expected --tiny, too")
    for name, usual, few in (("windows", 1024, 16), ("samples", 128, 16), ("tokens", 512, 128)):
        if getattr(options, name) is None:
            setattr(options, name, few if options.tiny else usual)
    return options


def main() -> None:
    options = parsed()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"No GPU: torch {torch.__version__} finds no CUDA device here, so nothing was measured."
        )
        return
    logging.disable(logging.WARNING)
    about = circumstances(options)
    print(f"{about['device']}, torch {about['torch']}, {about['date']}\n")
    table = StepTable(options.output, about, options.since + 60 * options.minutes)
    measure(table, options)
    print(f"\nfigures: {options.output}")
    if table.failed:
        raise SystemExit("a step failed")


if __name__ == "__main__":
    main()
