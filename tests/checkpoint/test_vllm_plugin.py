"""vLLM's entry point, beside a registry that only notes what it is told; `make engines` runs it in vLLM itself."""

import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from flap.checkpoint import vllm_plugin
from flap.checkpoint.modeling_flap import FlapLlamaConfig, FlapLlamaModel
from tests.helpers.engine_cases import CELLS, documented


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    known: dict[str, str] = {}
    registry = SimpleNamespace(register_model=known.setdefault)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    vllm_plugin.register()
    return known


def test_the_package_names_it() -> None:
    [entry] = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "flap"]
    assert entry.load() is vllm_plugin.register


def test_every_architecture_has_the_class_of_its_kind(registered: dict[str, str]) -> None:
    module = "vllm.model_executor.models.transformers"
    assert registered["FlapLlamaForCausalLM"] == f"{module}:TransformersForCausalLM"
    assert registered["FlapMixtralForCausalLM"] == f"{module}:TransformersMoEForCausalLM"


def test_what_vllm_would_compute_wrongly_is_left_out(registered: dict[str, str]) -> None:
    assert not {"FlapFalconH1ForCausalLM", "FlapGptOssForCausalLM"} & registered.keys()


@pytest.mark.parametrize(
    ("name", "option"), [("num_attention_heads", "min_heads"), ("intermediate_size", "min_neurons")]
)
def test_a_layer_without_units_is_refused_in_one_line(name: str, option: str) -> None:
    config = FlapLlamaConfig(num_hidden_layers=2, head_dim=8, per_layer_config={0: {}, 1: {name: 0}})
    config._attn_implementation = "vllm"  # as vLLM's Transformers backend sets it
    with pytest.raises(ValueError, match=rf"^vLLM: {name}=0 in layer 1: .*; prune with structure\.{option}=1$"):
        FlapLlamaModel(config)


def test_the_table_says_what_make_engines_holds() -> None:
    assert documented("vLLM") == dict.fromkeys(CELLS, "yes")
