"""The text of a model card, in the hub's format: the report of the run, and how each engine loads the checkpoint."""

import json
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import OmegaConf

from flap.checkpoint.card import MARK, without_folders
from flap.modeling.families import FAMILIES
from flap.results.markdown_text import code_block, code_span, escaped
from flap.results.notices import notices
from flap.results.report import Report
from flap.results.report_tables import measured, sizes
from flap.results.tables import Table

MADE_WITH = (
    "method", "ratio", "plan", "round_to", "metric", "structure", "compensation", "calibration", "vocabulary",
    "recover", "mask_only", "seed",
)  # fmt: skip
TAGS = ["flap", "pruning", "structured-pruning"]
PAPER = "[FLAP](https://arxiv.org/abs/2312.11983) (An et al., AAAI 2024)"
PLACE = "path/to/this/checkpoint"
TEXT = ("AutoModelForCausalLM", "AutoTokenizer")
WHOLE = ("AutoModelForImageTextToText", "AutoProcessor")  # of a vision-language model
NOT_IN_VLLM = (
    "falcon",
    "gpt2",
    "qwen3_next",
    "qwen3_5_text",
    "llama4_text",
    "falcon_h1",
    "nemotron_h",
)  # see docs
INSTALL = "Install it by `pip install .` in a clone: no index has it, and `flap` on PyPI is another program."


def model_card(report: Report, checkpoint: Path, base: dict[str, Any]) -> str:
    """Return the card: metadata, numbers, how to load the checkpoint in each engine, and how it was made.

    checkpoint: its directory; the engines whose files are in it are named. base: see `flap.models.base_facts`.
    """
    name = " ".join(report.config["model"]["name"].split())  # a heading is one line
    title = f"{name} pruned by {report.ratio['realised_decoder']:.0%}"
    made = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "model_name": title,
        "tags": TAGS,
    }
    data = ModelCardData(**(base | made))
    tables = measured(report), Table.of(("", "dense", "pruned"), sizes(report))
    parts = [MARK, f"# {escaped(title)}", _summary(report, base), "## Numbers"]
    parts += [table.markdown() for table in tables if table.rows]
    parts += [escaped(notice) for notice in notices(report)]
    parts += [loading(checkpoint), "## How it was made", _choices(report)]
    parts += ["## Licence", _licence(base)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _summary(report: Report, base: dict[str, Any]) -> str:
    removed = report.ratio["realised_decoder"]
    name = base.get("base_model", report.config["model"]["name"])
    training = "Then it was trained, see below." if report.recovery else "Nothing was trained."
    units = "experts" if any("experts" in layer for layer in report.layers) else "MLP neurons"
    tokens = report.vocabulary
    fewer = (
        f" Of {tokens['before']:,} tokens of its vocabulary {tokens['after']:,} stay."
        if tokens
        else ""
    )
    return (
        f"{code_span(str(name))} without {removed:.2%} of the parameters of its decoder layers: "
        f"attention heads and {units} were removed after {PAPER}, by `flap-pruning` "
        f"{report.versions['flap-pruning']}. {training} What is left is dense matrices, with a "
        f"number of heads and {units} for each layer.{fewer}"
    )


def _choices(report: Report) -> str:
    named = [name for name in MADE_WITH if report.config[name] not in (None, {})]
    choices = {name: without_folders(report.config[name]) for name in named}
    text = OmegaConf.to_yaml(
        {"run_name": report.config["run_name"], **choices, "versions": report.versions}
    )
    block = code_block(text.rstrip("\n"), "yaml")
    return f"{block}\n\n`flap.json` has the whole config and the units that each layer kept."


def _licence(base: dict[str, Any]) -> str:
    if "license" not in base:
        return "That of the base model, whose files do not name it: look it up before you share this checkpoint."
    name = base.get("license_name", base["license"])
    return f"That of the base model: {escaped(str(name))}."


def loading(checkpoint: Path) -> str:
    """Return the section: how to load the checkpoint in each engine that takes the files in its directory."""
    config = json.loads((checkpoint / "config.json").read_text())
    trust = "auto_map" in config
    vision = "vision_config" in config
    sections = ["## Load it", "### transformers", _transformers(trust, *WHOLE if vision else TEXT)]
    if not vision and config["model_type"].removeprefix("flap_") not in NOT_IN_VLLM:
        sections += ["### vLLM", _vllm(trust, config["model_type"])]
    if files := sorted(path.name for path in checkpoint.glob("*.gguf")):
        sections.append("### llama.cpp")
        for name in files:
            model = shlex.quote(f"{PLACE}/{name}")
            sections.append(code_block(f'llama-cli -m {model} -p "The Eiffel Tower"'))
    return "\n\n".join(
        [
            *sections,
            "`python -m flap export --help` lists other formats that it can be converted to.",
        ]
    )


def _transformers(trust: bool, auto: str, preparing: str) -> str:
    trusted = ", trust_remote_code=True" if trust else ""
    code = code_block(
        f"from transformers import {auto}, {preparing}\n\n"
        f'model = {auto}.from_pretrained("{PLACE}"{trusted})\n'
        f'{preparing.removeprefix("Auto").lower()} = {preparing}.from_pretrained("{PLACE}"{trusted})',
        "python",
    )
    without = f"After `import flap; flap.register()` of that program, it needs no `trust_remote_code`. {INSTALL}"
    return f"{code}\n\n{without}" if trust else code


def _vllm(trust: bool, model_type: str) -> str:
    needs = "With `pip install --no-deps .` in its clone, in the environment of vLLM"
    # the kernels for experts need the package's own class
    experts = FAMILIES[model_type.removeprefix("flap_")].experts
    needs += "." if experts else "; without that package, add `--trust-remote-code`."
    return code_block(f"vllm serve {PLACE}") + (f"\n\n{needs}" if trust else "")
