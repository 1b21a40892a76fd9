"""Make tiny pruned checkpoints of model families, with equal and with different layer widths.

This module also reads the table of docs/exports.md, which says for each architecture and inference
engine whether their combination is tested.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

import flap
from flap.checkpoint.export.mlx.export import ARCHITECTURES
from flap.method.compression import NoCompensation
from tests.cases import random_model, tokens
from tests.helpers.gguf_cases import Exported
from tests.helpers.pruned import prune, save_pruned
from tests.models.families.every import EVERY

FORMS = ("by layer", "uniform")
PROMPT = tokens(seed=3)[:1]
# The test class of each model family has a dict of tiny configs. A checkpoint gets the config whose
# key VARIANTS names, or else the config "gqa". CHANGES replaces some values of this config by those
# of real models.
VARIANTS = {
    "gemma2": "mha",
    "gemma3_text": "mha",
    "opt": "norm-before",
    "gpt_neox": "parallel",
    "gpt2": "untied",
    "falcon": "one-kv-head",
    "deepseek_v3": "queries",
    "gemma4_text": "mixture",
    "nemotron_h": "mixture",
}
CHANGES = {
    "gemma3_text": {"final_logit_softcapping": None},
    "gpt_neox": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        }
    },
    "gpt_oss": {"swiglu_limit": 7.0},
}
EVERY_FAMILY = {next(iter(family.configs.values())).model_type: family for family in EVERY}
FAMILIES = {model_type: EVERY_FAMILY[model_type] for model_type in [*ARCHITECTURES, "opt"]}
CELLS = [(model_type, form) for model_type in FAMILIES for form in FORMS]


def family_config(model_type: str) -> PreTrainedConfig:
    """Return the tiny config of a family for the tests of inference engines such as vLLM."""
    config = deepcopy(EVERY_FAMILY[model_type].configs[VARIANTS.get(model_type, "gqa")])
    for name, value in CHANGES.get(model_type, {}).items():
        setattr(config, name, value)
    return config


def family_checkpoint(
    model_type: str, form: str, tokenizer: PreTrainedTokenizerBase, directory: Path, layers: int = 3
) -> Exported:
    """Save a pruned model of a family in one of two forms.

    In the form "by layer", the layers differ in width, and biases compensate for the removed heads
    and neurons. In the form "uniform", all layers have the same width, and there is no
    compensation.
    """
    config = family_config(model_type)
    family = EVERY_FAMILY[model_type]
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[-layers:]
    model = random_model(config)
    if form == "by layer":
        plan = prune(model, 0.4)
    else:
        plan = prune(
            model, family.uniform_ratio, structure=family.uniform, compensation=NoCompensation()
        )
    return Exported(save_pruned(model, tokenizer, directory, plan).directory, model)


@torch.no_grad()
def expected_logprobs(exported: Exported, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    """Return the log-probabilities that transformers computes after every token of a prompt."""
    return exported.model(input_ids=prompt).logits[0].log_softmax(-1)


def assert_refused(export: Callable[[Path], object], directory: Path, line: str) -> None:
    """Check that an export is refused: its error matches `line`, and it leaves no file behind."""
    before = sorted(directory.iterdir())
    with pytest.raises(ValueError, match=line) as caught:
        export(directory)
    assert "\n" not in str(caught.value)
    assert sorted(directory.iterdir()) == before


def documented(engine: str) -> dict[tuple[str, str], str]:
    """Return the entries of an engine's column in the table of docs/exports.md.

    Each key of the dict is a pair of family and form. Both forms of a family have the same entry.
    """
    text = (Path(flap.__file__).parents[1] / "docs" / "exports.md").read_text()
    table = text[text.index("| `model_type` |") :].partition("\n\n")[0]
    heads, _, *rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    return {
        (name, form): row[heads.index(engine)]
        for row in rows
        for name in row[0].split(", ")
        for form in FORMS
    }
