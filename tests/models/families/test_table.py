"""The README's table of families is what the contract tests, cell by cell, and names every architecture there is."""

from pathlib import Path

import pytest

import flap
from flap.export.gguf.architecture import MODEL_TYPES
from flap.models import adapt
from flap.models.families import FAMILIES
from tests.cases import random_model
from tests.models.families import test_families
from tests.models.families.contract import FamilyContract

assert test_families  # each of its classes is a family under the contract
README = Path(flap.__file__).parents[1] / "README.md"
CONTRACTS = {next(iter(one.configs.values())).model_type: one for one in FamilyContract.__subclasses__()}


def row(model_type: str) -> str:
    """What the contract tests of an architecture."""
    contract = CONTRACTS[model_type]
    models = [random_model(config) for config in contract.configs.values()]
    adapters, names = [adapt(model) for model in models], {name for name, _ in models[0].named_parameters()}
    kinds = {"MHA" if adapter.queries_per_group(0) == 1 else "GQA" for adapter in adapters}
    mlp = adapters[0].mlp(0)
    rows = mlp.unit_price // models[0].config.hidden_size
    neurons = "experts" if mlp.num_experts > 1 else {2: "plain", 3: "gated"}[rows]
    kept = [f"`{key}`" for key in contract.features]
    kept += ["q and k norms"] if any("q_norm" in name for name in names) else []
    kept += ["tied embeddings"] if any(config.tie_word_embeddings for config in contract.configs.values()) else []
    stock = "with biases" if contract.holds_biases else "`compensation=none`"
    gguf = "yes" if model_type in MODEL_TYPES else "no"
    cells = (model_type, ", ".join(sorted(kinds, reverse=True)), neurons, ", ".join(kept), stock, gguf)
    return f"| {' | '.join(cells)} |"


def table() -> dict[str, str]:
    lines = README.read_text().split("| `model_type` |")[1].split("\n\n")[0].splitlines()[2:]
    return {line.split(" ")[1]: line for line in lines}


def test_it_names_every_architecture_there_is() -> None:
    registered = [model_type for family in FAMILIES for model_type in family.model_types]
    assert sorted(table()) == sorted(CONTRACTS) == sorted(registered)


@pytest.mark.parametrize("model_type", CONTRACTS)
def test_each_cell_is_what_the_contract_tests(model_type: str) -> None:
    assert table()[model_type] == row(model_type)
