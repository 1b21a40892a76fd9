"""flap's plugin registers pruned models in vLLM, and refuses widths that vLLM cannot serve.

These tests replace vLLM by fake modules. `make engines` tests the plugin in vLLM itself.
"""

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
    [entry] = entry_points(group="vllm.general_plugins", name="flap")
    assert entry.load() is vllm_plugin.register


@pytest.mark.parametrize(
    ("registry", "configs"),
    [({}, {"MODELS_CONFIG_MAP": {}}), ({"register_model": dict}, {})],
    ids=["older", "newer"],
)
def test_another_vllm_is_one_line_of_warning_and_serves_other_models(
    registry: dict[str, Any],
    configs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(ModelRegistry=SimpleNamespace(**registry))
    )
    monkeypatch.setitem(sys.modules, CHECKS, SimpleNamespace(__name__=CHECKS, **configs))
    vllm_plugin.register()
    [line] = caplog.messages
    assert line.startswith(
        "flap: this vLLM cannot serve pruned checkpoints; other models are not affected ("
    )
    assert ("register_model" if configs else "MODELS_CONFIG_MAP") in line and "\n" not in line


LAYER = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "mlp_output_bias": True,
}


def built_by_vllm(
    changes: dict[str, int], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> FlapLlamaConfig:
    """Return the config that vLLM's Transformers backend builds for a pruned model.

    changes: the widths in which the second layer differs from the first layer.
    ranks: the number of processes among which vLLM divides the model.
    """
    distributed = SimpleNamespace(get_tensor_model_parallel_world_size=lambda: ranks)
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    widths = {0: LAYER, 1: LAYER | changes}
    config = FlapLlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        per_layer_config=widths,
    )
    config._attn_implementation = "vllm"
    return config


def ask(config: FlapLlamaConfig, ranks: int) -> None:
    """Check a config with the plugin, as vLLM does before it starts its processes."""
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=config),
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
    )
    checks = sys.modules[CHECKS].MODELS_CONFIG_MAP["FlapLlamaForCausalLM"]
    checks.verify_and_update_config(vllm_config)


@pytest.mark.parametrize(
    ("name", "n", "ranks", "rest"),
    [
        (
            "intermediate_size",
            23,
            2,
            "=23 in layer 1 .*=2: serve with tensor_parallel_size=1, or prune with round_to=8",
        ),
        (
            "num_key_value_heads",
            2,
            4,
            "=2 in .*=4: serve with .*=2, or prune with structure.multiple_of_heads=4",
        ),
    ],
)
def test_widths_that_vllm_cannot_serve_are_refused_in_one_line(
    name: str,
    n: int,
    ranks: int,
    rest: str,
    registered: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = built_by_vllm({name: n}, ranks, monkeypatch)
    with pytest.raises(ValueError, match=f"^vLLM: {name}{rest}$"):
        FlapLlamaModel(config)
    with pytest.raises(RuntimeError, match=f"^vLLM: {name}{rest}$"):
        ask(config, ranks)


def test_the_table_says_what_make_engines_holds() -> None:
    assert documented("vLLM") == dict.fromkeys(CELLS, "yes")
