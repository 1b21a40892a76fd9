"""Wrong training options are refused, and valid ones determine the number of training steps."""

from dataclasses import replace

import pytest
from transformers import NemotronHConfig

from flap.models import adapt
from flap.runtime import ranks
from tests.cases import random_model, tiny_model
from tests.method.recovery.small import FULL, LORA
from tests.models.families.test_mixtures import TestNemotronH as NemotronH
from tests.models.families.tiny import GQA


def test_low_rank_updates_take_a_hybrid_without_experts() -> None:
    layers = ["linear_attention", "mlp", "full_attention", "mlp"]
    options = GQA | NemotronH.own | {"layers_block_type": layers}
    LORA.check(adapt(random_model(NemotronHConfig(**options))))


def test_batches_are_shared_out_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 3)
    refusal = r"recover.batch_size=8: expected a multiple of 3, the number of processes"
    with pytest.raises(ValueError, match=refusal):
        FULL.check(adapt(tiny_model("llama-gqa")))


@pytest.mark.parametrize(
    ("processes", "seq_len", "tokens", "windows"),
    [
        (1, 1024, 2**18, 1),
        (1, 256, 2**18, 4),
        (1, 2048, 2**18, 1),
        (4, 1024, 2**18, 4),
        (3, 256, 2**18, 6),
        (1, 16, 32 * 16, 32),
        (3, 16, 32 * 16, 30),
    ],
)
def test_without_a_batch_size_a_step_has_as_few_windows_as_have_its_tokens(
    processes: int, seq_len: int, tokens: int, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "size", lambda: processes)
    recovery = replace(FULL, seq_len=seq_len, tokens=tokens, batch_size=None)
    assert recovery.windows_a_step == windows
    recovery.check(adapt(tiny_model("llama-gqa")))


def test_steps_are_whole() -> None:
    assert replace(FULL, tokens=128).steps == replace(FULL, tokens=255).steps == 1
    assert replace(FULL, tokens=256).steps == 2


def shares_of_rate(steps: int) -> list[float]:
    recovery = replace(FULL, tokens=steps * FULL.tokens_a_step)
    return [recovery.share_of_rate(step) for step in range(recovery.steps)]


def test_the_learning_rate_rises_and_falls_and_is_never_0() -> None:
    assert shares_of_rate(1) == [1.0]
    shares = shares_of_rate(40)
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[2:] == sorted(shares[2:], reverse=True)
    assert min(shares) > 0
