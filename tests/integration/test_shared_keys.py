"""Complete runs on a tiny model with the structure of Gemma 4 E2B.

In this model, each layer has a separate embedding of the tokens, and later layers reuse the keys
and values of earlier layers.
"""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.method.allocation import PruningPlan
from flap.pipeline import run
from tests.cases import random_model
from tests.helpers.runs import composed, tiny
from tests.models.families.test_mixtures import TestGemma4 as Gemma4


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast, text_file: Path
) -> list[str]:
    folder = tmp_path_factory.mktemp("gemma")
    random_model(Gemma4.configs["E2B"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [*tiny(folder, text_file), "model.dtype=float32"]


def test_each_batch_has_its_own_embeddings_and_keys(inputs: list[str], tmp_path: Path) -> None:
    fits = "metric=OBS", "compensation=linear", "structure.scale=relative"
    reports = [
        run(composed(*inputs, *fits, f"calibration.batch_size={size}"), tmp_path / str(size))
        for size in (1, 8)
    ]
    plans = [PruningPlan.load(tmp_path / str(size) / "plan.json") for size in (1, 8)]
    assert plans[0] == plans[1] and reports[0].layers == reports[1].layers
    for layer, before in zip(reports[0].layers[1:], reports[0].layers_before[1:], strict=True):
        # Each of these layers reuses the keys and values of an earlier layer, so flap removes none
        # of the layer's heads.
        assert layer["query_heads"] == before["query_heads"]
    pairs = zip(reports[0].layers, reports[0].layers_before, strict=True)
    assert any(layer["neurons"] < before["neurons"] for layer, before in pairs)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (
            "structure=search",
            "structure=search: expected another structure for this model, whose layers read",
        ),
        (
            "model.placement=stream",
            "model.placement=stream: expected device or auto for this model, whose layers read",
        ),
        (
            "vocabulary=trim vocabulary.size=90",
            "vocabulary=trim: expected none for this model, which has embeddings",
        ),
    ],
)
def test_what_would_run_a_layer_alone_is_refused(
    option: str, line: str, inputs: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        run(composed(*inputs, *option.split()), tmp_path)
