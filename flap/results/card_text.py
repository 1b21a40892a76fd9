"""The text of a model card for the Hugging Face Hub.

The template card.md.j2 is rendered with values from the report of the run.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import OmegaConf

from flap.checkpoint.card import MARK, without_folders
from flap.config.schema import TARGETS
from flap.modeling.families import FAMILIES
from flap.results.markdown_text import code_block, code_span, escaped
from flap.results.notices import notices
from flap.results.report import Report
from flap.results.report_tables import measured, sizes
from flap.results.tables import Table
from flap.results.templates import template

# The keys and sections of the config that the card shows.
MADE_WITH = (
    "method",
    "ratio",
    "target",
    "plan",
    "round_to",
    "metric",
    "structure",
    "compensation",
    "calibration",
    "vocabulary",
    "recover",
    "mask_only",
    "seed",
)
METADATA = {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["flap", "pruning", "structured-pruning"],
}
PLACE = "path/to/this/checkpoint"
# The `model_type` of each model family for which the card shows no vLLM command. vLLM refuses these
# families, or generates other text than transformers does (docs/exports.md).
NOT_IN_VLLM = (
    "falcon",
    "gpt2",
    "qwen3_next",
    "qwen3_5_text",
    "llama4_text",
    "falcon_h1",
    "nemotron_h",
)


def model_card(report: Report, checkpoint: Path, base: dict[str, Any]) -> str:
    """Return the model card of a checkpoint.

    The card contains metadata and measured results, such as perplexities. The card also says how
    the checkpoint was made, and how to load it with transformers, vLLM and llama.cpp.

    checkpoint: the directory of the checkpoint. The card names the GGUF files in this directory.
    base: facts about the dense model, such as its licence (`flap.models.base_facts`).
    """
    config = json.loads((checkpoint / "config.json").read_text())
    name = " ".join(report.config["model"]["name"].split())  # without line breaks
    title = f"{name} pruned by {report.ratio['realised_decoder']:.0%}"
    metadata = ModelCardData(**(base | METADATA), model_name=title)
    tables = measured(report), Table(("", "dense", "pruned"), sizes(report))
    numbers = [table.markdown() for table in tables if table.rows]
    card = template("card.md.j2", escaped=escaped, code_span=code_span, code_block=code_block)
    text = card.render(
        metadata=metadata.to_yaml(),
        mark=MARK,
        title=title,
        name=name,
        base=base,
        report=report,
        units="experts" if any("experts" in layer for layer in report.layers) else "MLP neurons",
        numbers=[*numbers, *map(escaped, notices(report))],
        place=PLACE,
        remote_code="auto_map" in config,
        vision="vision_config" in config,
        family=config["model_type"].removeprefix("flap_"),
        families=FAMILIES,
        not_in_vllm=NOT_IN_VLLM,
        gguf_files=[
            shlex.quote(f"{PLACE}/{file.name}") for file in sorted(checkpoint.glob("*.gguf"))
        ],
        settings=_settings(report),
    )
    return str(ModelCard(text))


def _settings(report: Report) -> str:
    """Return the name and the settings of the run, and the library versions, as YAML."""
    settings = {"run_name": report.config["run_name"]}
    for name in MADE_WITH:
        value = report.config[name]
        if name == "target":
            value = _set(value)
        if value not in (None, {}):
            settings[name] = without_folders(value)
    return OmegaConf.to_yaml(settings | {"versions": report.versions}).rstrip("\n")


def _set(target: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the config section `target` that are set; {} if no target is set."""
    values = {name: value for name, value in target.items() if value is not None}
    return values if values.keys() & {*TARGETS} else {}
