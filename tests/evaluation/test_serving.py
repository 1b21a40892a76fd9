"""The time to the first token and for each further one: what the numbers are made of, and options out of range."""

from typing import Any

import pytest
from transformers import PreTrainedModel

from flap.evaluation import Efficiency, Serving
from tests.cases import tiny_model


def test_times_ratios_and_what_parameters_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parameters, and 0.9 of the time to the first token, after a slow warm-up: 1.11 of what is promised."""
    dense, pruned = tiny_model("llama-gqa"), tiny_model("llama-gqa")
    asked: list[tuple[str, int, int]] = []

    def milliseconds(self: Efficiency, model: PreTrainedModel) -> tuple[float, float]:
        asked.append(("dense" if model is dense else "pruned", self.batch_size, self.prefill_len))
        slow = 10 if len(asked) <= 2 else 1
        return slow * (20.0 if model is dense else 13.0), slow * (10.0 if model is dense else 4.0)

    monkeypatch.setattr(Efficiency, "milliseconds", milliseconds)
    one, other = Serving([8], [16], decode_len=2, repeats=3).compare(dense, pruned)
    assert asked == [("dense", 8, 16), ("pruned", 8, 16)] * 4
    assert one == {
        "serving/first_token_ms@8x16": 10, "serving/first_token_ms@8x16_stderr": 0,
        "serving/token_ms@8x16": 5, "serving/token_ms@8x16_stderr": 0,
    }  # fmt: skip
    assert other["serving/token_ms@8x16"] == 2 and other["serving/token_ms@8x16_ratio"] == pytest.approx(0.4)
    assert other["serving/first_token_ms@8x16_of_ideal"] == pytest.approx(10 / 9)  # as many parameters
    assert len(other) == 2 * 4


def test_a_tiny_model_is_timed() -> None:
    model = tiny_model("llama-gqa")
    _, found = Serving([1, 2], [4], decode_len=2, repeats=2).compare(model, model)
    assert {name.partition("@")[2] for name in found if name.endswith("x4")} == {"1x4", "2x4"}
    assert min(found.values()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": []}, r"batch_sizes=\[\]: expected a list of whole numbers >= 1"),
        ({"prompt_lens": [0]}, r"prompt_lens=\[0\]: expected"),
        ({"decode_len": 0}, "decode_len=0: expected"),
        ({"repeats": 1}, "repeats=1: expected a whole number >= 2"),
        ({"prompt_lens": [120], "decode_len": 9}, r"prompt_lens \+ decode_len = 129: the model's context ends at 128"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^eval\.serving\.{message}"):
        Serving(**options).comparisons(128)
