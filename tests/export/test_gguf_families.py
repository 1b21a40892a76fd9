"""The families with one width for all layers run in real llama.cpp, and compute there what transformers computes."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import flap
from flap.allocation import ULMM, ULUM
from flap.compression import BiasCompensation, Compensation, NoCompensation
from flap.export.gguf import export_gguf
from flap.export.gguf.architecture import GGUFArchitecture
from flap.export.gguf.families import ARCHITECTURES
from tests.cases import random_model
from tests.export.test_gguf import architecture, assert_computes_the_same, run
from tests.helpers.gguf_cases import Exported
from tests.helpers.gguf_families import CASES, MIXTURES, config_of, family_of, use_table
from tests.helpers.pruned import prune, save_pruned
from tests.helpers.tokenizers import KINDS
from tests.models.test_whole_experts import decided, prune_experts

TAKE_BIASES = [case for case in CASES if ARCHITECTURES[family_of(case)].takes_compensation]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return KINDS["smollm"]()


def dense(case: str, words: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = config_of(case)
    config.eos_token_id = words.eos_token_id
    return random_model(config)


NONE = NoCompensation()


def pruned(case: str, words: PreTrainedTokenizerFast, directory: Path, compensation: Compensation = NONE) -> Exported:
    model = dense(case, words)
    square = ARCHITECTURES[family_of(case)].square
    structure, ratio = (ULMM(remove_heads=0), 0.3) if square else (ULUM(), 0.5)
    plan = prune(model, ratio, structure=structure, compensation=compensation)
    return Exported(save_pruned(model, words, directory, plan).directory, model)


def assert_same(exported: Exported, case: str) -> None:
    """With GELU, near what transformers computes, and the same as it computes with llama.cpp's table."""
    arch = ARCHITECTURES[family_of(case)].name
    has_gelu = any("GELU" in type(module).__name__ for module in exported.model.modules())
    assert_computes_the_same(exported, arch, 0.02 if has_gelu else 1e-3)
    if has_gelu:
        use_table(exported.model)
        assert_computes_the_same(exported, arch, 3e-3)  # an input may round to another number of the table


# a second form of a family ("exaone4, slides" takes 64 layers)
@pytest.mark.parametrize("case", [pytest.param(one, marks=[pytest.mark.long] * ("," in one)) for one in CASES])
def test_it_computes_the_same(case: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    assert_same(pruned(case, words, tmp_path / "pruned"), case)


@pytest.mark.parametrize("case", TAKE_BIASES)
def test_biases_of_compensation(case: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    assert_same(pruned(case, words, tmp_path / "pruned", BiasCompensation()), case)


@pytest.mark.parametrize("case", MIXTURES)
def test_whole_experts_that_left(case: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = dense(case, words)
    plan = decided(model, 0.3, ULMM(remove_heads=0, experts=True))
    prune_experts(model, plan)
    assert_same(Exported(save_pruned(model, words, tmp_path / "pruned", plan).directory, model), case)


@pytest.mark.parametrize("case", ["olmoe", "gpt2"])
def test_smaller_types(case: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    exported = pruned(case, words, tmp_path / "pruned")
    for kind in ("f16", "bf16", "q8_0"):
        gguf = export_gguf(exported.directory, kind)
        assert architecture(gguf) == case
        logprobs, _ = run(gguf)
        assert (logprobs - exported.logprobs()).abs().mean() <= 0.05


def test_the_docs_name_each_family_in_its_row() -> None:
    text = (Path(flap.__file__).parents[1] / "docs" / "exports.md").read_text()
    lines = text.split("| llama.cpp supports |")[1].split("\n\n")[0].splitlines()[2:]
    rows = {cells[1].strip(): cells[3].strip().split(", ") for cells in (line.split("|") for line in lines)}

    def holds(row: GGUFArchitecture) -> str:
        widths = "widths by layer" if row.by_layer else "one width"
        return widths + " of MLPs, all heads" * row.square + ", biases" * row.takes_compensation

    by_kind = {kind: [name for name, row in ARCHITECTURES.items() if holds(row) == kind] for kind in rows}
    assert rows == by_kind
    assert sum(map(len, rows.values())) == len(ARCHITECTURES)
