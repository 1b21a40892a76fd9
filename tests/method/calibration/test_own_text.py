"""Text that a model generates is sampled from the model's distribution, and is reproducible.

Such a text contains no sequences that repeat themselves in a loop.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from flap.data import Part, Windows
from flap.data.part_reader import beginning
from flap.method.calibration.own_text import Draft, write
from flap.method.calibration.sampling import USES, attention_of_one_query, sample
from flap.models import PLACEMENTS, Resident
from flap.runtime.temporary_state import seeded
from flap.storage import WorkFolder
from tests.cases import VOCAB, tiny_model
from tests.helpers.marks import quick
from tests.helpers.placed import placed_at


@pytest.fixture
def windows(tokenizer: PreTrainedTokenizerFast) -> Windows:
    return Windows((Part("self"),), (None,), tokenizer, 40, 32, seed=0)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flap.method.calibration.own_text.SEQ_LEN", 48)


def test_a_sequence_is_no_longer_than_the_models_context(windows: Windows) -> None:
    learned = GPT2Config(
        vocab_size=VOCAB, n_positions=20, n_embd=32, n_layer=2, n_head=4, bos_token_id=1
    )
    draft = Draft(replace(windows, seq_len=8), learned.n_positions)
    assert write(Resident(GPT2LMHeadModel(learned).eval()), draft)["tokens"] >= 41 * 8


def test_the_same_seed_writes_the_same_and_the_callers_randomness_is_left_alone(
    windows: Windows,
) -> None:
    model = Resident(tiny_model("llama-gqa"))
    state = torch.get_rng_state()
    first = write(model, Draft(windows))["documents"]
    again = write(model, Draft(windows))["documents"]
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert write(model, Draft(replace(windows, seed=1)))["documents"] != first
    assert model.model.generation_config.max_new_tokens is None


def test_the_text_of_a_training_is_not_that_of_the_calibration(windows: Windows) -> None:
    model = Resident(tiny_model("llama-gqa"))
    drafts = [Draft(replace(windows, field=use)) for use in USES]
    assert drafts[0].key != drafts[1].key
    assert not set(write(model, drafts[0])["documents"]) & set(write(model, drafts[1])["documents"])
    for ends_elsewhere in (replace(windows, bos=True), replace(windows, seq_len=16)):
        assert Draft(windows).key != Draft(ends_elsewhere).key


def test_a_text_goes_on_where_it_was_interrupted(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is continued after an interruption equals a text that was generated at once.

    Each batch of sequences has its own seed, so an interruption changes no later batch.
    """
    monkeypatch.setattr("flap.method.calibration.own_text.SEQUENCES", 2)
    model = Resident(tiny_model("llama-gqa"))
    drawn = []

    def sampled(*given: Any) -> torch.Tensor:
        drawn.append(sample(*given))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return drawn[-1]

    expected = write(model, Draft(windows))
    monkeypatch.setattr("flap.method.calibration.own_text.sample", sampled)
    with pytest.raises(KeyboardInterrupt):
        write(model, Draft(windows), WorkFolder(tmp_path / "write"))
    found = write(model, Draft(windows), WorkFolder(tmp_path / "write"))
    assert {**found, "seconds": 0} == {**expected, "seconds": 0} and found["seconds"] > 0
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])


@pytest.mark.parametrize("placement", quick(1, PLACEMENTS))
def test_every_placement_writes_the_same(
    placement: str,
    windows: Windows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model("llama-gqa")
    model.save_pretrained(tmp_path / "dense")
    windows.tokenizer.save_pretrained(tmp_path / "dense")
    placed = placed_at(placement, tmp_path / "dense")
    if placement == "stream":  # simulate a model that does not fit into memory
        monkeypatch.setattr(type(placed), "fits_in_memory", lambda self: False)
        monkeypatch.setattr(type(placed), "in_memory", lambda self: pytest.fail("loaded"))
    written = write(placed, Draft(windows))
    assert written["documents"] == write(Resident(model), Draft(windows))["documents"]
    assert ("is read from disk for each token of a batch" in caplog.text) == (placement == "stream")


def test_tokens_come_from_the_models_distribution(tokenizer: PreTrainedTokenizerFast) -> None:
    """The frequencies of 4,000 sampled tokens agree with the probabilities that the model predicts.

    Sampling ignores the model's generation_config, and uses neither top-k nor top-p.
    """
    placed = Resident(tiny_model("llama-gqa"))
    start = beginning(tokenizer, "f")[1]
    with torch.no_grad():
        placed.model.lm_head.weight *= 20  # make the distribution far from uniform
        expected = placed.model(torch.tensor([[start]])).logits[0, -1].softmax(0)
    assert expected.max() > 10 / len(expected)
    placed.model.generation_config.repetition_penalty = 50.0
    with seeded(0):
        first = sample(placed, start, 4000, 2)[:, 1]
    observed = torch.bincount(first, minlength=len(expected)) / len(first)
    assert (observed - expected).abs().max() < 4 * 0.5 / len(first) ** 0.5


@pytest.mark.parametrize("case", ["llama-mha", "llama-gqa", "mistral-mha-tied", "qwen3_moe"])
def test_attention_of_one_query_is_what_transformers_computes(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = Resident(tiny_model(case))
    model = placed.model
    tokens_NT = torch.arange(3, 27).view(2, 12)
    model.set_attn_implementation("sdpa")

    queries = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *given: torch.Tensor, **options: Any) -> torch.Tensor:
        queries.append(query.shape[2])
        return kernel(query, *given, **options)

    def stepwise() -> torch.Tensor:
        """Read 9 tokens at once, then one token per step. Return the logits of the later steps."""
        cache = model(tokens_NT[:, :9], use_cache=True).past_key_values
        logits = list[torch.Tensor]()
        for token_N1 in tokens_NT[:, 9:].split(1, dim=1):
            logits.append(model(token_N1, past_key_values=cache).logits)
        return torch.cat(logits)

    with torch.no_grad():
        expected = stepwise()
        with attention_of_one_query(placed), monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            torch.testing.assert_close(stepwise(), expected)
        assert queries
        # Without a sliding window, a single query needs no mask, and flap computes its attention
        # without torch's kernel. Of the four models, only mistral-mha-tied has a sliding window.
        assert 1 not in queries or case == "mistral-mha-tied"
        assert torch.equal(stepwise(), expected)


def test_loops_are_dropped_and_a_model_of_loops_is_refused(windows: Windows) -> None:
    model = tiny_model("llama-gqa")
    with torch.no_grad():  # make the model generate the same token all the time
        model.model.norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
        model.lm_head.weight.zero_()[7] = 1.0
    with pytest.raises(
        ValueError, match=r"^calibration\.dataset=self: \d+ of \d+ generated sequences repeat them"
    ):
        write(Resident(model), Draft(windows))


def test_it_begins_with_eos_where_there_is_no_bos(
    tokenizer: PreTrainedTokenizerFast, windows: Windows, caplog: pytest.LogCaptureFixture
) -> None:
    without = deepcopy(tokenizer)
    without.bos_token = None
    assert beginning(without, "f") == ("EOS, as there is no BOS", tokenizer.eos_token_id)
    write(
        Resident(tiny_model("llama-gqa")),
        Draft(replace(windows, tokenizer=without, field="recover")),
    )
    assert "recover.dataset=self: the model begins with EOS, as there is no BOS" in caplog.text
    without.eos_token = None
    with pytest.raises(
        ValueError, match=r"^f: the tokenizer has neither BOS nor EOS to begin with"
    ):
        beginning(without, "f")
