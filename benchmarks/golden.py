"""Compare plans, weights and measured results of 25 runs before and after a refactoring.

    python benchmarks/golden.py write FOLDER       # once before the refactoring, and once after it
    python benchmarks/golden.py compare OLD NEW    # equal plans; all else within 1e-6

`write` stores the results of the runs in FOLDER. OLD and NEW are two such folders: from before and
from after the refactoring. A plan says which heads and neurons of a model stay. The measured
results are the perplexity and the bits per byte of the dense and the pruned model. The script
starts the runs through flap's command line, so that it still works if a refactoring has changed the
code inside flap. All runs use one thread. Compare only runs that were made on the same machine.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, MixtralConfig

SHARED = [
    "calibration.num_samples=16",
    "eval.perplexity.max_tokens=2048",
    "ratio=0.2",
    "seed=0",
    "use_cache=false",
]
STRUCTURES = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
METRICS = ("WIFV", "OBS")
COMPENSATIONS = ("bias", "linear")
TOLERANCE = 1e-6


def cells(mixture: Path) -> dict[str, list[str]]:
    """Return a dict from the name of each run to its command-line options.

    mixture: the folder of the model that `make_mixture` writes.
    """
    grid = {
        f"{structure} {metric} {compensation}": [
            f"structure={structure}",
            f"metric={metric}",
            f"compensation={compensation}",
        ]
        for structure in STRUCTURES
        for metric in METRICS
        for compensation in COMPENSATIONS
    }
    others = {
        "search": [
            "method=flap_plus",
            "calibration=boolq-passages",
            "calibration.num_samples=16",
            "structure.tokens=256",
        ],
        "wanda_sp": ["method=wanda_sp"],
        "mag_sp": ["method=mag_sp"],
        "stream": ["model.placement=stream"],
        "auto": ["model.placement=auto"],
        "wanda_sp stream": ["method=wanda_sp", "model.placement=stream"],
    }
    of_mixture = ["model.name=mixture", f"model.path={mixture}"]
    mixtures = {
        f"mixture {place}": [*of_mixture, f"model.placement={place}"]
        for place in ("device", "auto", "stream")
    }
    return grid | others | mixtures


def make_mixture(folder: Path) -> Path:
    """Write a tiny random Mixtral with the tokenizer of SmolLM2, and return the folder."""
    from measuring import packaged

    source = packaged()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    }
    config = MixtralConfig(
        vocab_size=source.config.vocab_size,
        num_key_value_heads=4,
        head_dim=8,
        num_local_experts=6,
        **sizes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path) -> None:
    """Start each run that the folder does not contain yet, and print a line for every run."""
    os.environ |= {"FLAP_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    mixture = folder / "mixture"
    if not (mixture / "config.json").is_file():
        make_mixture(mixture)
    for name, overrides in cells(mixture).items():
        run_dir = folder / name.replace(" ", "_")
        if not (run_dir / "report.json").is_file():
            command = [
                sys.executable,
                "-m",
                "flap",
                *SHARED,
                *overrides,
                f"hydra.run.dir={run_dir}",
            ]
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        print(f"{name:24} {row(run_dir)}", flush=True)


def row(run_dir: Path) -> str:
    """Return a line with digests of the plan and the weights, and the pruned model's results."""
    numbers = json.loads((run_dir / "report.json").read_text())["evaluation"]["pruned"]
    return f"plan {plan_digest(run_dir)} weights {weights_digest(run_dir)} {numbers}"


def plan_digest(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "plan.json").read_bytes()).hexdigest()[:12]


def weights_digest(run_dir: Path) -> str:
    """Return a digest of a checkpoint's tensors; it does not depend on the number of shards."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors(run_dir).items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()[:12]


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    held: dict[str, torch.Tensor] = {}
    for shard in (run_dir / "checkpoint").glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            held |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return held


def compare(old: Path, new: Path) -> bool:
    """Print by how much each run differs between two folders, and return whether all runs agree.

    Two runs agree if their plans are equal, and their weights and measured results differ by at
    most TOLERANCE (relative difference).
    """
    same = True
    for name in cells(old / "mixture"):
        a, b = (folder / name.replace(" ", "_") for folder in (old, new))
        plans = plan_digest(a) == plan_digest(b)
        weights = weight_difference(tensors(a), tensors(b))
        numbers = number_difference(a, b)
        same &= plans and weights <= TOLERANCE and numbers <= TOLERANCE
        print(
            f"{name:24} plan {'equal' if plans else 'DIFFERS'}, weights {weights:.1e}, "
            f"numbers {numbers:.1e}"
        )
    return same


def weight_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two models' weights.

    Each difference is divided by the largest absolute value in the tensor of the weight in `a`. The
    result is infinite if `a` and `b` have tensors with different names or shapes.

    a, b: dicts from the names of the models' tensors to the tensors.
    """
    if {name: one.shape for name, one in a.items()} != {name: one.shape for name, one in b.items()}:
        return float("inf")
    return max(float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp(min=1e-30)) for n in a)


def number_difference(a: Path, b: Path) -> float:
    """Return the largest relative difference between the measured results of two runs.

    a, b: the folders of the two runs. The difference is infinite if run `a` has a result that is
    missing in run `b`.
    """
    old, new = (json.loads((folder / "report.json").read_text())["evaluation"] for folder in (a, b))
    differences: list[float] = [
        abs(float(new[which].get(name, "inf")) / value - 1)
        for which, of in old.items()
        for name, value in of.items()
    ]
    return max(differences, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Plans, weights and numbers that must stay as they are."
    )
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    folders = [folder.resolve() for folder in options.folders]
    if options.action == "write":
        write(folders[0])
    elif not compare(*folders):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
