"""eval=efficiency measures the dense and the pruned model alternately, and compares the results."""

from pathlib import Path

import pytest

import flap.evaluation.efficiency as efficiency
from flap.evaluation import Efficiency
from flap.pipeline import run
from tests.cases import tiny_model
from tests.helpers.runs import composed, tiny

NAMES = {
    "parameters",
    "checkpoint_bytes",
    "prefill_macs",
    "peak_memory_bytes",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "latency_ms",
}


def test_models_take_turns_and_a_number_is_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny_model("llama-mha")
    pruned = tiny_model("llama-gqa")
    times = {
        dense: iter([(9.0, 99.0), (1.0, 3.0), (2.0, 6.0), (4.0, 6.0)]),
        pruned: iter([(9.0, 99.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]),
    }
    turns = []

    def request_seconds(model: object, prompt: object, new_tokens: int) -> tuple[float, float]:
        turns.append(model)
        assert new_tokens == 5
        return next(times[model])

    monkeypatch.setattr(efficiency, "request_seconds", request_seconds)
    efficiency_of = Efficiency(batch_size=2, prefill_len=10, decode_len=4, repeats=3)
    measured = efficiency_of.compare(dense, pruned)
    of_dense, of_pruned = measured.beside, measured.numbers
    # Each model runs four times, and the first run of each model is only a warm-up.
    assert turns == [dense, pruned] * 4
    assert of_dense["efficiency/latency_ms"] == 6000 and of_pruned["efficiency/latency_ms"] == 3000
    # In the three measured runs of the dense model, reading two prompts of 10 tokens each takes 1,
    # 2 and 4 s. So the median speed is 20 tokens in 2 s.
    assert of_dense["efficiency/prefill_tokens_per_second"] == 10.0
    # The whole requests take 3, 6 and 6 s, so writing the 8 new tokens takes 3 - 1, 6 - 2 and 6 - 4
    # s. These are 4, 2 and 4 tokens per second, with the median 4.
    assert of_dense["efficiency/decode_tokens_per_second"] == 4.0
    assert of_pruned["efficiency/decode_tokens_per_second"] == 4.0  # 8 tokens in 1, 2 and 3 s
    # In the three turns, the pruned model's latency divided by the dense model's latency is 2/3,
    # 3/6 and 4/6, with the median 2/3.
    assert of_pruned["efficiency/latency_ms_ratio"] == pytest.approx(2 / 3)


def test_a_run_puts_dense_beside_pruned(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = [one for one in tiny(model_dir, text_file) if not one.startswith("eval")]
    options = (
        "eval=[efficiency]",
        "eval.efficiency.prefill_len=8",
        "eval.efficiency.decode_len=3",
        "ratio=0.5",
    )
    report = run(composed(*arguments, *options, "eval.efficiency.repeats=1"), tmp_path)
    dense = report.evaluation["dense"]
    pruned = report.evaluation["pruned"]
    assert {name.removeprefix("efficiency/") for name in dense} == NAMES
    assert {name.removeprefix("efficiency/") for name in pruned} == NAMES | {
        f"{name}_ratio" for name in NAMES
    }
    assert dense["efficiency/parameters"] == report.parameters["total_before"]
    assert pruned["efficiency/parameters"] == report.parameters["total_after"]
    for name in ("parameters", "checkpoint_bytes", "prefill_macs"):
        ratio = pruned[f"efficiency/{name}"] / dense[f"efficiency/{name}"]
        assert pruned[f"efficiency/{name}_ratio"] == pytest.approx(ratio) and 0.4 < ratio < 1
    assert all(value > 0 for value in (*dense.values(), *pruned.values()))
    on_disk = (tmp_path / "checkpoint" / "model.safetensors").stat().st_size
    # The file model.safetensors contains a header in addition to the weights.
    assert 0 < on_disk - pruned["efficiency/checkpoint_bytes"] < 10_000
