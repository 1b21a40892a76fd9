"""How fast pruned models are where people serve them: `python benchmarks/engines.py` (CPU).

Dense, and pruned at each ratio with AL-AM and UL-UM, with and without round_to=64, in each engine: tokens a second of
prefill and of decoding, and the peak memory of the process. One process a measurement, all variants in turn, medians
over the repeats. Beside each speed-up stands what it could be: by the operations of the layers' Linears for prefill, by
the weights that a token reads for decoding. On a machine that others use, only figures side by side mean something.

The packaged SmolLM2-135M is small and measures overhead, too; `--gb 1` takes a random LLaMA of so many GB in bfloat16.
An engine of another environment has its interpreter named: `--python vllm=DIR/bin/python`. An absent one is one line.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open
from scale import LAYERS

from flap.evaluation import engine_speed
from flap.evaluation.engine_speed import ENGINES

BESIDE = Path(__file__).parent
FEW = ["calibration=boolq-passages", "calibration.num_samples=16", "eval=none"]
COLUMNS = (
    "engine", "model", "prefill, tokens/s", "times dense", "could be", "share",
    "decode, tokens/s", "times dense", "could be", "share", "first token, ms", "each further, ms", "peak, MB",
)  # fmt: skip


def run(*command: str, python: str = sys.executable, asked: str = "") -> str:
    """What a command printed; its errors go to the console. asked: its standard input."""
    return subprocess.run([python, *command], check=True, stdout=subprocess.PIPE, text=True, input=asked).stdout


def variants(ratios: Sequence[float], structures: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each model, by its name."""
    pruned = {
        f"{structure} {ratio}{', round_to=64' if round_to else ''}": [
            f"structure={structure}", f"ratio={ratio}", *(["round_to=64"] if round_to else []),
        ]
        for ratio, structure, round_to in product(ratios, structures, (False, True))
    }  # fmt: skip
    return {"dense": ["ratio=0"], **pruned}


def prepare(folder: Path, name: str, overrides: list[str], model: list[str], formats: Sequence[str]) -> Path:
    """The checkpoint of a variant, made where it is missing, in all formats that engines need."""
    checkpoint = folder / re.sub("[ ,=]+", "-", name)
    if not checkpoint.is_dir():
        places = [f"checkpoint.dir={checkpoint}", f"hydra.run.dir={checkpoint}-run"]
        run("-m", "flap", *model, *FEW, *overrides, *places)
        for form in formats:
            subprocess.run([sys.executable, "-m", "flap.export", str(checkpoint), form], check=False)
    return checkpoint


def reads(checkpoint: Path) -> dict[str, float]:
    """What a token costs: operations of the layers' Linears (prefill), and weights that it reads (decode)."""
    sizes: dict[str, int] = {}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no mapping
        sizes |= {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 2}
    layers = sum(size for name, size in sizes.items() if ".layers." in name)
    head = next(size for name in ("lm_head.weight", "model.embed_tokens.weight") if (size := sizes.get(name)))
    return {"prefill": layers, "decode": layers + head}


def row(
    engine: str, name: str, taken: list[dict[str, float]], dense: list[dict[str, float]], promise: dict[str, float]
) -> str:
    """A line of the table: medians of this variant and of the dense one."""
    cells = [engine, name]
    for what in ("prefill", "decode"):
        median, base = (statistics.median(one[what] for one in runs) for runs in (taken, dense))
        times = median / base
        cells += [f"{median:.1f}", f"{times:.2f}", f"{promise[what]:.2f}", f"{times / promise[what]:.2f}"]
    cells += [f"{statistics.median(one[what] for one in taken):.1f}" for what in ("first_token_ms", "token_ms")]
    cells.append(f"{statistics.median(one['peak'] for one in taken) / 1e6:.0f}")
    return f"| {' | '.join(cells)} |"


def compare(options: argparse.Namespace, folder: Path) -> None:
    model: list[str] = []
    if options.gb:
        run(str(BESIDE / "scale.py"), "--write", str(folder), "llama", str(LAYERS[options.gb]))
        model = [f"model.path={folder / 'dense'}", "model.name=random"]
    engines, pythons = list(options.engines), dict(one.split("=", 1) for one in options.python)
    formats = sorted({form for engine in engines if (form := ENGINES[engine][1])})
    places = {
        name: prepare(folder, f"made {name}", overrides, model, formats)
        for name, overrides in variants(options.ratios, options.structures).items()
    }
    promised = {name: reads(place) for name, place in places.items()}
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _, engine, name in product(range(options.repeats), engines, places):
        if engine not in engines:
            continue
        arguments = [engine, str(places[name]), str(options.prompt + options.new_tokens), str(options.batch)]
        printed = run(
            engine_speed.__file__, *arguments, python=pythons.get(engine, sys.executable),
            asked=f"{options.prompt} {options.new_tokens} {options.batch}\n",
        )  # fmt: skip
        found = json.loads(printed.splitlines()[-1])
        if "absent" in found:
            print(f"{engine}: not measured, {found['absent']}", flush=True)
            engines.remove(engine)
        else:
            taken.setdefault((engine, name), []).append(found)
    print("|", " | ".join(COLUMNS), "|\n" + "|" + "---|" * len(COLUMNS))
    for (engine, name), runs in taken.items():
        promise = {what: promised["dense"][what] / promised[name][what] for what in ("prefill", "decode")}
        print(row(engine, name, runs, taken[engine, "dense"], promise), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--python", nargs="+", default=[], metavar="ENGINE=PATH", help="interpreters of engines")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--structures", nargs="+", default=["AL-AM", "UL-UM"])
    parser.add_argument("--gb", type=int, choices=LAYERS, help="a random model of this size, not the packaged one")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1, help="requests at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where models are kept; default: a temporary folder")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with TemporaryDirectory(dir=options.folder) as folder:
        compare(options, options.folder or Path(folder))


if __name__ == "__main__":
    main()
