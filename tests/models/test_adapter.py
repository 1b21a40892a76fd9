"""`adapt` finds the modules that flap prunes in a model, and refuses models it cannot prune."""

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3nTextConfig,
    LlavaConfig,
    LlavaModel,
    PaliGemmaConfig,
    XLNetConfig,
)

from flap.method.allocation import LayerPlan
from flap.method.compression import NoCompensation, slice_layer
from flap.modeling.families import FAMILIES
from flap.models import adapt, find_family
from tests.cases import tiny_model


def test_a_kv_head_owns_the_query_heads_that_read_it() -> None:
    # The model has 8 query heads and 4 KV heads, with 8 channels each.
    attention = adapt(tiny_model("llama-gqa")).attention(0)
    (_, q_rows), (_, k_rows), (_, v_rows) = attention.inputs
    assert attention.columns_UC[1].tolist() == q_rows[1].tolist() == list(range(16, 32))
    assert k_rows[1].tolist() == v_rows[1].tolist() == list(range(8, 16))


def test_attributes_of_modules_are_their_widths_after_pruning() -> None:
    model = tiny_model("llama-gqa")
    slice_layer(adapt(model), 1, LayerPlan((0, 3), tuple(range(0, 56, 3))), NoCompensation(), None)
    layer = model.model.layers[1]
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    assert all((one.out_features, one.in_features) == one.weight.shape for one in linears)
    assert layer.mlp.intermediate_size == layer.mlp.down_proj.in_features == 19
    assert layer.self_attn.k_proj.out_features == 2 * 8


def test_unsupported_architecture_says_what_is_supported() -> None:
    with pytest.raises(
        ValueError, match="'gemma3n_text' is not supported; the nearest is gemma3_text; "
    ) as error:
        find_family(Gemma3nTextConfig())
    for part in (*FAMILIES, "flap/modeling/families", "'A new family'"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="'xlnet' is not supported; supported are "):
        find_family(XLNetConfig())


def test_a_vision_language_model_is_refused_by_name() -> None:
    known = (
        r"vision-language model 'paligemma' is not supported; supported are gemma3, .* "
        r"\(model_type gemma\)"
    )
    with pytest.raises(ValueError, match=known):
        find_family(PaliGemmaConfig())
    with pytest.raises(ValueError, match="'bloom' is not supported; supported are "):
        find_family(LlavaConfig(text_config=BloomConfig()))


def test_a_vision_language_model_without_its_head_is_refused() -> None:
    with torch.device("meta"):
        model = LlavaModel(LlavaConfig())
    with pytest.raises(
        ValueError, match="LlavaModel derives from no …ForConditionalGeneration class"
    ):
        adapt(model)
    with pytest.raises(ValueError, match="LlamaModel derives from no …ForCausalLM class"):
        adapt(model.language_model)


def test_a_setting_that_is_not_supported_is_refused() -> None:
    with pytest.raises(
        ValueError, match="falcon with alibi=true is not supported; expected alibi=false"
    ):
        find_family(FalconConfig(alibi=True))
