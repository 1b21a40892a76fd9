"""The table in docs/families.md names every architecture and the features that are tested."""

from pathlib import Path

import pytest

import flap
from flap.modeling.families import TOWERS
from flap.models import adapt
from tests.cases import random_model
from tests.models.families.every import EVERY, MODEL_TYPES

TABLE = Path(flap.__file__).parents[1] / "docs" / "families.md"
CONTRACTS = {next(iter(one.configs.values())).model_type: one for one in EVERY}


# The keys are the beginnings of the names of modules that flap does not prune. The values are the
# texts that stand for these modules in the table. The table does not list routers, which flap does
# not prune in any family.
STAYS = {
    "linear_attn": "linear attention",
    "mamba": "state space",
    "self_attn": "MLA",
    "mixer.in_proj": "state space",
    "mixer.shared_expert": "shared experts",
    "mlp.shared_expert": "shared experts",
    "mlp.down_proj": "plain MLP beside experts",
    "feed_forward.shared_expert": "shared experts",
}


def row(model_type: str) -> str:
    """Return the row that the table must have for an architecture."""
    contract = CONTRACTS[model_type]
    models = [random_model(config) for config in contract.configs.values()]
    adapters = [adapt(model) for model in models]
    names = {name for name, _ in models[0].named_parameters()}
    divided = [
        (adapter, i)
        for adapter in adapters
        for i in range(len(adapter.layers))
        if adapter.attention(i).inputs
    ]
    kinds = {"MHA" if adapter.queries_per_group(i) == 1 else "GQA" for adapter, i in divided}
    mlps = [adapters[0].mlp(i) for i in range(len(adapters[0].layers))]
    rows = mlps[0].unit_price // models[0].config.get_text_config().hidden_size
    neurons = (
        "experts" if any(len(mlp.members) > 1 for mlp in mlps) else {2: "plain", 3: "gated"}[rows]
    )
    kept = [f"`{key}`" for key in contract.features]
    kept += (
        ["q and k norms"]
        if any(norm in name for name in names for norm in ("q_norm", "query_layernorm"))
        else []
    )
    stock = (
        "with biases"
        if contract.holds_biases
        else "`compensation=none`"
        if contract.stock
        else "no"
    )
    stays = {
        text for part in contract.stays for name, text in STAYS.items() if part.startswith(name)
    }
    stays |= {"vision tower, projector"} if model_type in TOWERS else set()
    heads = "both" if len(kinds) == 2 else ", ".join(kinds) or "none"
    cells = (model_type, heads, neurons, ", ".join(sorted(stays)), ", ".join(kept), stock)
    return f"| {' | '.join(cells)} |"


def table() -> dict[str, str]:
    lines = TABLE.read_text().split("| `model_type` |")[1].split("\n\n")[0].splitlines()[2:]
    return {line.split(" ")[1]: line for line in lines}


def test_it_names_every_architecture_there_is() -> None:
    assert sorted(table()) == sorted(CONTRACTS) == sorted(MODEL_TYPES)


@pytest.mark.parametrize("model_type", CONTRACTS)
def test_each_cell_is_what_the_contract_tests(model_type: str) -> None:
    assert table()[model_type] == row(model_type)


def write() -> None:
    """Write the table to docs/families.md.

    The command is `python -m tests.models.families.test_table`.
    """
    before, rest = TABLE.read_text().split("| `model_type` |")
    _, after = rest.split("\n\n", 1)
    head = (
        "| `model_type` | attention | neurons | stays whole | kept, besides the widths | "
        "stock checkpoint |"
    )
    rows = "\n".join(row(model_type) for model_type in MODEL_TYPES)
    TABLE.write_text(f"{before}{head}\n|{'---|' * 6}\n{rows}\n\n{after}")


if __name__ == "__main__":
    write()
