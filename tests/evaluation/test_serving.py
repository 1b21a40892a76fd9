"""The time to the first token and for each further one: what the numbers are made of, engines, and bad input."""

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from flap.evaluation import Efficiency, Serving
from flap.evaluation.engine_process import Engine
from flap.pipeline import run
from tests.cases import random_model, tiny_model
from tests.helpers.engine_cases import family_config
from tests.helpers.runs import composed, tiny
from tests.helpers.tokenizers import VOCAB, smollm


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


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny LLaMA that llama.cpp reads."""
    config = family_config("llama")
    config.vocab_size = VOCAB
    for one in (random_model(config), smollm()):
        one.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_llama_cpp_times_both_checkpoints_in_turns(llama: Path, text_file: Path, tmp_path: Path) -> None:
    options = ("engines=[llama.cpp]", "batch_sizes=[1,2]", "prompt_lens=[8]", "decode_len=2", "repeats=2")
    serving = ["eval=[serving]", *(f"eval.serving.{option}" for option in options)]
    report = run(composed(*tiny(llama, text_file)[:-2], *serving, "ratio=0.5"), tmp_path / "run")
    dense, pruned = report.evaluation["dense"], report.evaluation["pruned"]
    times = {f"serving/llama.cpp_{what}@{n}x8" for what in ("first_token_ms", "token_ms") for n in (1, 2)}
    assert times < dense.keys() & pruned.keys() and dense["serving/llama.cpp_first_token_ms@1x8"] > 0
    name, kept = "serving/llama.cpp_token_ms@2x8", report.parameters["total_after"] / report.parameters["total_before"]
    assert pruned[f"{name}_of_ideal"] * pruned[f"{name}_ratio"] == pytest.approx(kept)
    assert not list((tmp_path / "run" / "checkpoint").glob("*.gguf"))  # nothing was asked for there


def test_what_an_engine_says_is_passed_on(tmp_path: Path) -> None:
    with (
        Engine.open("llama.cpp", None, tmp_path, 8, 1) as engine,
        pytest.raises(RuntimeError, match=r"^llama\.cpp: \w+"),
    ):
        engine.times(1, 4, 2)


def test_a_checkpoint_that_is_not_saved_cannot_be_served(llama: Path, text_file: Path, tmp_path: Path) -> None:
    options = ("eval=[serving]", "eval.serving.engines=[llama.cpp]", "eval.serving.prompt_lens=[8]")
    with pytest.raises(ValueError, match=r"^checkpoint\.save=False: expected true with serving llama\.cpp"):
        run(composed(*tiny(llama, text_file)[:-2], *options, "checkpoint.save=false"), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": []}, r"batch_sizes=\[\]: expected a list of whole numbers >= 1"),
        ({"prompt_lens": [0]}, r"prompt_lens=\[0\]: expected"),
        ({"decode_len": 0}, "decode_len=0: expected"),
        ({"repeats": 1}, "repeats=1: expected a whole number >= 2"),
        ({"engines": ["tgi"]}, "engines=tgi: expected some of transformers, llama.cpp, vllm"),
        (
            {"engines": ["vllm"], "prompt_lens": [8]},
            f"engines=vllm: {sys.executable} has no vllm; install it there, or name the interpreter",
        ),
        (
            {"engines": ["vllm"], "prompt_lens": [8], "python": {"vllm": "/no/python"}},
            r"python\.vllm=/no/python: cannot be run",
        ),
        ({"prompt_lens": [120], "decode_len": 9}, r"prompt_lens \+ decode_len = 129: the model's context ends at 128"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^eval\.serving\.{message}"):
        Serving(**options).comparisons(128)
