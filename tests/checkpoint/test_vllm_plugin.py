"""vLLM's entry point, beside a registry that only notes what it is told; `make engines` runs it in vLLM itself."""

import sys
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest

from flap.checkpoint import vllm_plugin
from flap.modeling.modeling_flap import FlapLlamaConfig, FlapLlamaModel
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


def test_mixtures_have_the_class_that_runs_experts_in_the_kernels_of_vllm(registered: dict[str, str]) -> None:
    classes = {"Llama": "", "Mixtral": "MoE", "GptOss": "MoE", "Llama4": "", "DeepseekV3": ""}
    for name, kind in classes.items():
        found = registered[f"Flap{name}ForCausalLM"]
        assert found == f"flap.checkpoint.vllm_model:Transformers{kind}ForCausalLM"


def test_what_vllm_would_compute_wrongly_is_left_out(registered: dict[str, str]) -> None:
    assert "FlapFalconH1ForCausalLM" not in registered


@pytest.mark.parametrize(
    ("registry", "configs"), [({}, {"MODELS_CONFIG_MAP": {}}), ({"register_model": dict}, {})], ids=["older", "newer"]
)
def test_another_vllm_is_one_line_of_warning_and_serves_other_models(
    registry: dict[str, Any], configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=SimpleNamespace(**registry)))
    monkeypatch.setitem(sys.modules, CHECKS, SimpleNamespace(__name__=CHECKS, **configs))
    vllm_plugin.register()
    [line] = caplog.messages
    assert line.startswith("flap: this vLLM cannot serve pruned checkpoints, other models are not affected (")
    assert ("register_model" if configs else "MODELS_CONFIG_MAP") in line and "\n" not in line


LAYER = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 64, "mlp_output_bias": True}


def built_by_vllm(changes: dict[str, int], ranks: int, monkeypatch: pytest.MonkeyPatch) -> FlapLlamaConfig:
    """A config whose second layer has other widths, as vLLM's Transformers backend has it in one of its processes."""
    distributed = SimpleNamespace(get_tensor_model_parallel_world_size=lambda: ranks)
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    widths = {0: LAYER, 1: LAYER | changes}
    config = FlapLlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, head_dim=8, num_attention_heads=8, num_key_value_heads=4,
        per_layer_config=widths,
    )  # fmt: skip
    config._attn_implementation = "vllm"
    return config


def ask(config: FlapLlamaConfig, ranks: int) -> str:
    """Let vLLM's process ask before it starts others; return what vLLM knows of the architecture then."""
    model_config = SimpleNamespace(
        hf_text_config=config, model_arch_config="old", get_model_arch_config=lambda: "as the config says now"
    )
    asked = SimpleNamespace(model_config=model_config, parallel_config=SimpleNamespace(tensor_parallel_size=ranks))
    sys.modules[CHECKS].MODELS_CONFIG_MAP["FlapLlamaForCausalLM"].verify_and_update_config(asked)
    return model_config.model_arch_config


@pytest.mark.parametrize(
    ("name", "n", "ranks", "rest"),
    [
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
    config = built_by_vllm({name: n}, ranks, monkeypatch)
    with pytest.raises(ValueError, match=f"^vLLM: {name}{rest}$"):
        FlapLlamaModel(config)
    with pytest.raises(RuntimeError, match=f"^vLLM: {name}{rest}$"):  # before it starts its processes
        ask(config, ranks)


EMPTY = {"num_attention_heads": 0, "num_key_value_heads": 0, "intermediate_size": 0}


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_empty_layer_gets_a_unit_each(
    ranks: int, registered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = built_by_vllm(EMPTY, ranks, monkeypatch)
    assert ask(config, ranks) == "as the config says now"
    first, second = config.to_dict()["per_layer_config"].values()
    assert second == LAYER | {
        "num_attention_heads": 2 * ranks,
        "num_key_value_heads": ranks,
        "intermediate_size": ranks,
    }
    assert first.get("num_attention_heads", 8) == 8
    config._attn_implementation = "eager"  # transformers builds no model with vLLM's
    assert FlapLlamaModel(config).layers[1].self_attn.q_proj.out_features == 2 * ranks * 8


@pytest.mark.parametrize(
    ("name", "option"), [("num_attention_heads", "min_heads"), ("intermediate_size", "min_neurons")]
)
def test_an_empty_block_without_this_package_is_refused(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = built_by_vllm({name: 0}, 1, monkeypatch)
    line = f"^vLLM: {name}=0 in layer 1: .*; serve with flap-pruning installed .*, or prune with structure.{option}=1$"
    with pytest.raises(ValueError, match=line):
        FlapLlamaModel(config)


def test_the_table_says_what_make_engines_holds() -> None:
    assert documented("vLLM") == dict.fromkeys(CELLS, "yes")
