"""How to load a checkpoint in each engine, as a section of a model card."""

import json
from pathlib import Path
from typing import Any

from flap.checkpoint.card import PLACE
from flap.modeling.families import FAMILIES

HEADING = "## Load it\n"
TEXT = ("AutoModelForCausalLM", "AutoTokenizer")
WHOLE = ("AutoModelForImageTextToText", "AutoProcessor")  # of a vision-language model
NOT_IN_VLLM = ("falcon", "gpt2", "qwen3_next", "qwen3_5_text", "llama4_text", "falcon_h1")  # docs/exports.md says why
REST = "`python -m flap.export --help` lists other formats that it can be converted to."


def loading(checkpoint: Path) -> str:
    """Return the section: how to load the checkpoint in each engine that takes the files in its directory."""
    config = json.loads((checkpoint / "config.json").read_text())
    trust, vision = "auto_map" in config, "vision_config" in config
    texts = {
        "transformers": _transformers(trust, *WHOLE if vision else TEXT),
        "vLLM": "" if vision or config["model_type"].removeprefix("flap_") in NOT_IN_VLLM else _vllm(trust, config),
        "llama.cpp": "\n\n".join(_llama_cpp(path.name) for path in sorted(checkpoint.glob("*.gguf"))),
        "Ollama": _code(f"ollama create NAME -f {PLACE}/Modelfile") if (checkpoint / "Modelfile").is_file() else "",
        "MLX": "\n\n".join(_mlx(path.parent.name) for path in sorted(checkpoint.glob("mlx*/config.json"))),
        "ONNX Runtime": "\n\n".join(_onnx(path.name) for path in sorted(checkpoint.glob("onnx/*.onnx"))),
        "OpenVINO": "\n\n".join(_openvino(path.name) for path in sorted(checkpoint.glob("openvino/*.xml"))),
    }
    sections = [f"### {engine}\n\n{text}" for engine, text in texts.items() if text]
    return "\n\n".join([HEADING.rstrip(), *sections, REST])


def renewed(card: str, checkpoint: Path) -> str:
    """Return a card with the section of the files that are there now, as exports made later."""
    before, found, rest = card.partition(HEADING)
    return before + loading(checkpoint) + rest.partition(REST)[2] if found else card


def _transformers(trust: bool, auto: str, preparing: str) -> str:
    code = _code(
        f"from transformers import {auto}, {preparing}\n\n"
        f'model = {auto}.from_pretrained("{PLACE}"{", trust_remote_code=True" if trust else ""})\n'
        f'{preparing.removeprefix("Auto").lower()} = {preparing}.from_pretrained("{PLACE}")',
        "python",
    )
    without = "After `import flap; flap.register()` of `pip install flap-pruning`, it needs no `trust_remote_code`."
    return f"{code}\n\n{without}" if trust else code


def _vllm(trust: bool, config: dict[str, Any]) -> str:
    needs = "With `pip install --no-deps flap-pruning` beside vLLM"
    mixture = FAMILIES[config["model_type"].removeprefix("flap_")].experts  # its kernels need the package's experts
    needs += "." if mixture else "; without that package, add `--trust-remote-code`."
    return _code(f"vllm serve {PLACE}") + (f"\n\n{needs}" if trust else "")


def _llama_cpp(name: str) -> str:
    return _code(f'llama-cli -m {PLACE}/{name} -p "The Eiffel Tower"')


def _mlx(name: str) -> str:
    return _code(
        f'from mlx_lm import load\n\nmodel, tokenizer = load("{PLACE}/{name}", trust_remote_code=True)', "python"
    )


def _onnx(name: str) -> str:
    return _code(f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{PLACE}/onnx/{name}")', "python")


def _openvino(name: str) -> str:
    return _code(f'import openvino\n\nmodel = openvino.compile_model("{PLACE}/openvino/{name}", "CPU")', "python")


def _code(text: str, language: str = "") -> str:
    return f"```{language}\n{text}\n```"
