"""vLLM's entry point, beside a registry that only notes what it is told; `make engines` runs it in vLLM itself."""

import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from flap.checkpoint import vllm_plugin
from flap.checkpoint.modeling_flap import FlapLlamaConfig, FlapLlamaModel
from tests.helpers.engine_cases import CELLS, documented

CHECKS = "vllm.model_executor.models.config"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    known: dict[str, str] = {}
    registry = SimpleNamespace(register_model=known.setdefault)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setitem(sys.modules, CHECKS, SimpleNamespace(MODELS_CONFIG_MAP={}))
    vllm_plugin.register()
    return known


def test_the_package_names_it() -> None:
    [entry] = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "flap"]
    assert entry.load() is vllm_plugin.register


def test_mixtures_too_have_the_class_that_leaves_experts_to_transformers(registered: dict[str, str]) -> None:
    assert {"FlapLlamaForCausalLM", "FlapMixtralForCausalLM", "FlapLlama4ForCausalLM"} <= registered.keys()
    assert set(registered.values()) == {"vllm.model_executor.models.transformers:TransformersForCausalLM"}


def test_what_vllm_would_compute_wrongly_is_left_out(registered: dict[str, str]) -> None:
    assert "FlapFalconH1ForCausalLM" not in registered


LAYER = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 64, "mlp_output_bias": True}


@pytest.mark.parametrize(
    ("name", "n", "ranks", "rest"),
    [
        ("num_attention_heads", 0, 1, "=0 in layer 1: .*; prune with structure.min_heads=1"),
        ("intermediate_size", 0, 1, "=0 in layer 1: .*; prune with structure.min_neurons=1"),
        (
            "intermediate_size",
            23,
            2,
            "=23 in layer 1 .*=2: serve with tensor_parallel_size=1, or prune with round_to=8",
        ),
        ("num_key_value_heads", 2, 4, "=2 in .*=4: serve with .*=2, or prune with structure.multiple_of_heads=4"),
    ],
)
def test_widths_that_vllm_cannot_serve_are_refused_in_one_line(
    name: str, n: int, ranks: int, rest: str, registered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = SimpleNamespace(get_tensor_model_parallel_world_size=lambda: ranks)
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    config = FlapLlamaConfig(num_hidden_layers=2, head_dim=8, per_layer_config={0: LAYER, 1: LAYER | {name: n}})
    config._attn_implementation = "vllm"  # as vLLM's Transformers backend sets it
    with pytest.raises(ValueError, match=f"^vLLM: {name}{rest}$"):
        FlapLlamaModel(config)
    asked = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=config), parallel_config=SimpleNamespace(tensor_parallel_size=ranks)
    )
    with pytest.raises(RuntimeError, match=f"^vLLM: {name}{rest}$"):  # before it starts its processes
        sys.modules[CHECKS].MODELS_CONFIG_MAP["FlapLlamaForCausalLM"].verify_and_update_config(asked)


def test_the_table_says_what_make_engines_holds() -> None:
    assert documented("vLLM") == dict.fromkeys(CELLS, "yes")
