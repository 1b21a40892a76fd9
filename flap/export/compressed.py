"""Write a checkpoint as a compressed-tensors folder for vLLM: llm-compressor quantises it, in its own environment."""

import subprocess
from fnmatch import fnmatch
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from transformers import PreTrainedConfig

from flap.export.checkpoint import Shards, head_dim, read_checkpoint
from flap.export.checks import SCHEMES, check_plain
from flap.models import adapt
from flap.models.source import skeleton
from flap.storage.atomic_files import atomic_directory

FILES = (  # of a checkpoint, that the folder has as well
    "*.safetensors", "*.json", "*.jinja", "modeling_flap.py", "tokenizer*", "merges.txt", "vocab.*",
)  # fmt: skip
QUANTISE = """
import sys
from llmcompressor import model_free_ptq
source, target, scheme, *ignored = sys.argv[1:]
model_free_ptq(source, target, scheme, ignore=ignored)
"""


def export_compressed(checkpoint: Path, scheme: str, python: str) -> Path:
    """Write the folder `compressed-tensors-<scheme>` into a checkpoint's directory and return its path.

    scheme: a key of SCHEMES, for the matrices of the decoder layers. python: of an environment with llm-compressor,
    which need not have this package.

    Raises:
        ValueError: there is no checkpoint, the scheme cannot hold its matrices, or llm-compressor is missing or fails.
    """
    config, _ = read_checkpoint(checkpoint)
    check_plain("compressed-tensors", config)
    shards, target = Shards.open(checkpoint), checkpoint / f"compressed-tensors-{scheme}"
    matrices = {name for name, shape in shards.shapes.items() if name.endswith(".weight") and len(shape) > 1}
    linears, heads = _linears(config, shards)
    _check_rows(scheme, config, {name: shards.shapes[name][1] for name in linears})
    # a tied head is in no file, but transformers would want its scale
    ignored = [name.removesuffix(".weight") for name in sorted(matrices - linears | heads)]
    try:
        with atomic_directory(target, "export") as scratch, TemporaryDirectory() as plain:
            for file in checkpoint.iterdir():
                if file.is_file() and any(fnmatch(file.name, pattern) for pattern in FILES):
                    (Path(plain) / file.name).symlink_to(file.absolute())
            _run(python, plain, str(scratch), scheme, *ignored)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error
    return target


def _linears(config: PreTrainedConfig, shards: Shards) -> tuple[set[str], set[str]]:
    """Return the weights of the decoder layers' Linears, and those of other Linears, such as the head.

    Raises:
        ValueError: other modules have matrices there, as experts or GPT-2's.
    """
    adapter = adapt(skeleton(config, trust_remote_code=False))
    modules = dict(adapter.model.named_modules())
    start = next(name for name, module in modules.items() if module is adapter.layers) + "."
    linears = {f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Linear)}
    inside = {name for name, shape in shards.shapes.items() if name.startswith(start) and len(shape) > 1}
    if others := sorted(inside - linears):
        raise ValueError(f"compressed-tensors: {others[0]} is no weight of a Linear, and only those can be quantised")
    return inside, linears - inside


def _check_rows(scheme: str, config: PreTrainedConfig, columns: dict[str, int]) -> None:
    """Check that the groups of a scheme divide the rows. columns: the length of a row, by name."""
    text, group = config.get_text_config(), SCHEMES[scheme]
    for name, length in columns.items():
        if length % group:
            heads = text.num_attention_heads
            queries = heads // (getattr(text, "num_key_value_heads", None) or heads)
            multiple = group // gcd(group, head_dim(text) * queries)
            way = f"prune with round_to={group} structure.multiple_of_heads={multiple}, or take another scheme"
            if text.hidden_size % group:
                way = f"take another scheme, as hidden_size={text.hidden_size} is none"
            raise ValueError(
                f"compressed-tensors: {scheme} takes rows of a multiple of {group}, and those of {name} have {length}; "
                f"{way}"
            )


def _run(python: str, *arguments: str) -> None:
    """Let llm-compressor quantise a folder; an error is its last line."""
    try:
        # -I: what this environment has in PYTHONPATH is not for that one
        done = subprocess.run([python, "-I", "-c", QUANTISE, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"--python={python}: expected the python of an environment ({error})") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        hint = "; pip install llmcompressor in an environment of its own, and name its python with --python"
        raise ValueError(f"compressed-tensors: {python}: {last[:300]}{hint if 'No module' in last else ''}")
