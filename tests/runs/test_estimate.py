"""The estimate beside what runs take: families, placements and methods, within a bound."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen3NextConfig

from flap.pipeline import run, stages
from flap.runs.forecast import EXPERTS_BYTES, forecast
from flap.runs.free_memory import PROCESS_BYTES
from tests.cases import random_model
from tests.helpers.runs import composed, tiny
from tests.helpers.taken import taken

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "dense": LlamaConfig(**SIZES),
    "mixture": MixtralConfig(**SIZES | {"intermediate_size": 128}, num_local_experts=4, num_experts_per_tok=2),
    "hybrid": Qwen3NextConfig(
        **SIZES, layer_types=["linear_attention", "full_attention"] * 2, linear_key_head_dim=16,
        linear_value_head_dim=16, linear_num_key_heads=4, linear_num_value_heads=4, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64,
    ),
}  # fmt: skip
# The last number is the least share of the measured peak: tensors inside linear attention are not estimated.
RUNS = [
    ("dense", "method=flap", "device", 0.8),
    ("dense", "method=flap_plus structure.levels=[0.25]", "stream", 0.8),
    ("dense", "method=flap_plus structure.levels=[0.25]", "auto", 0.8),
    ("mixture", "method=flap", "stream", 0.8),
    ("mixture", "method=flap_plus structure.levels=[0.25]", "device", 0.8),
    ("hybrid", "method=flap", "device", 0.5),
]


@pytest.mark.parametrize(("family", "method", "placement", "least"), RUNS)
def test_a_run_takes_what_is_estimated(
    family: str,
    method: str,
    placement: str,
    least: float,
    tokenizer: PreTrainedTokenizerFast,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random_model(FAMILIES[family]).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [*tiny(tmp_path / "model", text_file), *method.split(), f"calibration.dataset={text_file}"]
    windows = ["calibration.num_samples=20", "calibration.seq_len=64", "eval.perplexity.seq_len=64"]
    where = [f"model.placement={placement}", "model.device=cpu", f"cache_dir={tmp_path / 'cache'}", "use_cache=false"]
    config = composed(*arguments, *windows, *where, "ratio=0.4", "eval.perplexity.max_tokens=640")
    expected = forecast(config, stages)
    rows = expected.estimate.stages
    with taken(monkeypatch) as measured:
        report = run(config, tmp_path / "run")
    assert measured.stages == [name for name, _ in expected.costs]  # in the same order
    passes = sum(one.passes for one in rows if one.stage in ("calibrate", "score", "allocate", "compress"))
    assert report.weight_passes == passes
    operations = sum(measured.operations.values())
    assert 0.9 < sum(one.operations for one in rows) / operations < 1.1
    mixture = expected.place.shapes.has_experts * EXPERTS_BYTES * (1 + 2 * expected.choices.need_covariance)
    peak = max(one.resident_bytes for one in rows) - PROCESS_BYTES - mixture
    assert least < peak / max(measured.peak.values()) < 1.25
