"""Options that are refused, each in one line."""

from dataclasses import replace

import pytest
from transformers import NemotronHConfig

from flap.models import adapt
from flap.storage import ranks
from tests.cases import random_model, tiny_model
from tests.method.recovery.small import FULL, LORA
from tests.models.families.test_mixtures import TestNemotronH as NemotronH
from tests.models.families.tiny import GQA


def test_low_rank_updates_take_a_hybrid_without_experts() -> None:
    options = NemotronH.own | {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]
    }
    LORA.check(adapt(random_model(NemotronHConfig(**GQA | options))))


def test_batches_are_shared_out_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"recover.batch_size=8: expected a multiple of 3, the number of processes"
    ):
        FULL.check(adapt(tiny_model("llama-gqa")))


def test_without_a_batch_size_a_step_has_as_few_windows_as_hold_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for processes, seq_len, tokens, windows in (
        (1, 1024, 2**18, 1), (1, 256, 2**18, 4), (1, 2048, 2**18, 1), (4, 1024, 2**18, 4), (3, 256, 2**18, 6),
        (1, 16, 32 * 16, 32), (3, 16, 32 * 16, 30),
    ):  # fmt: skip
        monkeypatch.setattr(ranks, "size", lambda processes=processes: processes)
        recovery = replace(FULL, seq_len=seq_len, tokens=tokens, batch_size=None)
        assert recovery.windows_a_step == windows
        recovery.check(adapt(tiny_model("llama-gqa")))


def test_steps_are_whole() -> None:
    assert replace(FULL, tokens=128).steps == replace(FULL, tokens=255).steps == 1
    assert replace(FULL, tokens=256).steps == 2


def test_the_learning_rate_rises_and_falls_and_no_step_is_for_nothing() -> None:
    step = FULL.tokens_a_step
    shares = [
        [one.share_of_rate(n) for n in range(one.steps)]
        for one in (replace(FULL, tokens=n * step) for n in (1, 40))
    ]
    assert shares[0] == [1.0]
    rising = shares[1][:3]
    falling = shares[1][2:]
    assert rising == [0.5, 1.0, 1.0] and falling == sorted(falling, reverse=True)
    assert min(shares[1]) > 0
