"""Perplexity agrees with values computed by hand, and with a separate computation in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerFast

from flap.data import Batch
from flap.evaluation import Divergence, Perplexity, Task, perplexity
from flap.evaluation.perplexity import linearised, ratio_values, window_losses
from flap.models import PlacedModel, Resident, predictions
from tests.cases import ARCHITECTURES, VOCAB, tiny_model, tokens
from tests.helpers.tokenizers import TRICKY, gemma, smollm

FIVES = torch.tensor([[7, 5, 5, 5, 8]])


def model_with_logits(logits: Callable[[Tensor], Tensor]) -> Resident:
    """Return a model whose LM head computes its outputs with the function `logits`."""
    model = tiny_model("llama-mha")
    model.lm_head.forward = logits
    return Resident(model)


def model_that_says_five(logit: float) -> Resident:
    logits_V = logit * one_hot(torch.tensor(5), VOCAB)
    return model_with_logits(lambda hidden: logits_V.expand(*hidden.shape[:-1], VOCAB))


def measured(model: PlacedModel, tokens_NT: Tensor, batch_size: int) -> float:
    losses_N = window_losses(model, Batch.of(tokens_NT), batch_size)
    return perplexity.perplexity(losses_N)


def numbers_of(model: PlacedModel, windows: Batch, num_bytes: list[int]) -> dict[str, float]:
    """Return what a perplexity task measures on these windows: perplexity and bits per byte.

    num_bytes: the number of bytes of text in each window.
    """
    length = windows.tokens_NT.shape[1]
    task = Perplexity(["words"]).task("w", length, windows, torch.tensor(num_bytes))
    return task.run(model).numbers


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_float64_loop(architecture: str) -> None:
    model = tiny_model(architecture)
    windows_NT = tokens(5, 17)
    total = 0.0
    count = 0
    for window_T in windows_NT:
        logits_TV = model(input_ids=window_T[None]).logits[0]
        log_prob_TV = logits_TV.double().log_softmax(-1)
        for t in range(1, len(window_T)):
            total -= log_prob_TV[t - 1, window_T[t]].item()
            count += 1
    expected = math.exp(total / count)
    found = measured(Resident(model), windows_NT, batch_size=2)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 3, 23, 1000])
def test_logits_are_made_in_chunks_which_change_nothing(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("qwen2-gqa-tied")
    expected = measured(Resident(model), tokens(), batch_size=2)
    sizes = []

    def note_size(module: Module, args: tuple[Tensor], logits: Tensor) -> None:
        sizes.append(logits.shape[-2])

    monkeypatch.setattr(predictions, "LOGITS_BYTES", positions * 4 * VOCAB)
    model.lm_head.register_forward_hook(note_size)
    found = measured(Resident(model), tokens(), batch_size=2)
    assert found == pytest.approx(expected, rel=1e-6)
    assert max(sizes) == min(positions, 2 * 23)
    assert sum(sizes) == 6 * 23


def test_several_windows_of_several_texts(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    evaluator = Perplexity([str(text_file)], seq_len=[8, 16])
    short, long = evaluator.prepare(tokenizer, 128)
    assert short.name == "words.txt/perplexity@8"
    assert long.name == "words.txt/perplexity@16"
    assert short.identity != long.identity
    assert short.origin == str(text_file)


@pytest.mark.parametrize("evaluator", [Perplexity, Divergence])
def test_the_batch_size_is_part_of_the_identity(
    evaluator: type[Perplexity | Divergence], text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [small] = evaluator([str(text_file)], batch_size=2).prepare(tokenizer, 128)
    [large] = evaluator([str(text_file)], batch_size=8).prepare(tokenizer, 128)
    assert small.name == large.name
    assert small.identity != large.identity


def test_the_values_of_windows_have_the_perplexity_as_their_mean(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = Perplexity([str(text_file)], seq_len=16).prepare(tokenizer, 128)
    measurement = task.run(Resident(tiny_model("llama-gqa")))
    names = ["words.txt/perplexity@16", "words.txt/bits_per_byte@16"]
    assert list(measurement.documents) == names
    assert measurement.better == dict.fromkeys(names, "lower")
    for name, values in measurement.documents.items():
        assert len(values) == 187
        mean = sum(values) / 187
        assert mean == pytest.approx(measurement.numbers[name])


def test_bits_per_byte_are_of_the_text_that_is_scored(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = Perplexity([str(text_file)], seq_len=16, max_tokens=32).prepare(tokenizer, 128)
    numbers = task.run(Resident(tiny_model("llama-gqa"))).numbers

    # The task has two windows of 16 words. The model predicts all words of a window except the
    # first.
    words = text_file.read_text().split()
    scored_words = words[1:16] + words[17:32]
    scored_bytes = len("".join(scored_words).encode())
    bits = 30 * math.log2(numbers["words.txt/perplexity@16"])
    assert numbers["words.txt/bits_per_byte@16"] == pytest.approx(bits / scored_bytes)


ALL_WINDOWS = torch.ones(400, dtype=torch.bool)


def jackknife_error(statistic: Callable[[Tensor], float]) -> float:
    """Return the jackknife standard error of a statistic of 400 windows.

    The jackknife computes the statistic 400 times, each time without one of the windows.
    """
    values = []
    for i in range(400):
        kept_N = ALL_WINDOWS.clone()
        kept_N[i] = False
        values.append(statistic(kept_N))
    values_N = torch.tensor(values)
    deviation_N = values_N - values_N.mean()
    variance = 399 / 400 * deviation_N.square().sum()
    return variance.sqrt().item()


def standard_error(values_N: Tensor) -> float:
    return values_N.std().item() / math.sqrt(len(values_N))


def test_the_error_of_a_difference_of_perplexities_is_the_jackknifes() -> None:
    generator = torch.Generator().manual_seed(0)
    dense_N = (3 + 0.5 * torch.randn(400, generator=generator)).double()
    shift_N = 0.1 * torch.randn(400, generator=generator)
    pruned_N = 1.1 * dense_N + 0.2 + shift_N

    def difference(kept_N: Tensor) -> float:
        dense = perplexity.perplexity(dense_N[kept_N])
        pruned = perplexity.perplexity(pruned_N[kept_N])
        return pruned - dense

    difference_N = linearised(pruned_N) - linearised(dense_N)
    error = standard_error(difference_N)
    assert error == pytest.approx(jackknife_error(difference), rel=0.01)
    assert difference_N.mean().item() == pytest.approx(difference(ALL_WINDOWS))

    # Pairing the windows of the two models more than halves the standard error of the difference.
    dense_error = standard_error(linearised(dense_N))
    pruned_error = standard_error(linearised(pruned_N))
    assert error < 0.5 * math.hypot(dense_error, pruned_error)


def test_the_error_of_bits_per_byte_is_the_jackknifes() -> None:
    generator = torch.Generator().manual_seed(0)
    bytes_N = torch.randint(300, 700, (400,), generator=generator)
    noise_N = 0.2 * torch.randn(400, generator=generator).double()
    bits_N = bytes_N * (1 + noise_N)

    def ratio(kept_N: Tensor) -> float:
        bits = bits_N[kept_N].sum().item()
        return bits / bytes_N[kept_N].sum().item()

    values_N = ratio_values(bits_N, bytes_N)
    error = standard_error(values_N)
    assert error == pytest.approx(jackknife_error(ratio), rel=0.01)
    assert values_N.mean().item() == pytest.approx(ratio(ALL_WINDOWS))


class Windows(NamedTuple):
    """The windows of a task, and the number of bytes of text in each window."""

    batch: Batch
    bytes_N: Tensor


class WindowsOnly(Perplexity):
    """An evaluator with tasks that only return the windows of a text, and measure no model."""

    def task(self, text: str, seq_len: int, windows: Batch, bytes_N: Tensor, **about: Any) -> Task:
        def run() -> Any:
            return Windows(windows, bytes_N)

        return Task(f"{text}/{seq_len}", run, **about)


@pytest.fixture
def tricky_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(TRICKY) * 4)
    return file


def test_windows_of_another_tokenizer_hold_the_same_text(tricky_file: Path) -> None:
    old = smollm()
    new = gemma()
    evaluator = WindowsOnly([str(tricky_file)], seq_len=16)
    [before] = evaluator.prepare(old, 128)
    [after] = evaluator.prepare_again(new, 128, old)
    assert before.name == after.name
    assert before.identity != after.identity

    old_windows = before.run()
    new_windows = after.run()
    assert len(old_windows.batch) == len(new_windows.batch)
    for n, old_ids in enumerate(old_windows.batch.tokens_NT.tolist()):
        tokens_T = new_windows.batch.tokens_NT[n]
        mask_T = new_windows.batch.mask_NT[n]
        text = new.decode(tokens_T[mask_T].tolist())
        assert text == old.decode(old_ids).strip("\ufffd")


def test_windows_of_another_tokenizer_end_with_the_context(tricky_file: Path) -> None:
    evaluator = WindowsOnly([str(tricky_file)], seq_len=16)
    [limited] = evaluator.prepare_again(gemma(), 16, smollm())
    [unlimited] = evaluator.prepare_again(gemma(), None, smollm())
    short = limited.run()
    long = unlimited.run()
    short_NT = short.batch.tokens_NT
    long_NT = long.batch.tokens_NT
    assert torch.equal(short_NT, long_NT[:, :16])
    assert long_NT.shape[1] > 16
    assert (short.bytes_N <= long.bytes_N).all()


def test_a_window_that_is_filled_up_is_scored_as_it_is_alone() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    filled = Batch.of(tokens(3, 17))
    filled.mask_NT[:, 12:] = False
    filled.mask_NT[0, 9:] = False

    short = Batch.of(filled.tokens_NT[:1, :9])
    long = Batch.of(filled.tokens_NT[1:, :12])
    short_N = window_losses(model, short, 1)
    long_N = window_losses(model, long, 1)
    expected_N = torch.cat([short_N, long_N])
    torch.testing.assert_close(window_losses(model, filled, 2), expected_N, rtol=1e-5, atol=0)

    predictions_N = torch.tensor([8.0, 11.0, 11.0]).double()
    nats = (window_losses(model, filled, 1) @ predictions_N).item()
    bits = nats / math.log(2)
    numbers = numbers_of(model, filled, [30, 40, 41])
    assert numbers["w/perplexity@17"] == pytest.approx(math.exp(nats / 30))
    assert numbers["w/bits_per_byte@17"] == pytest.approx(bits / 111)


def test_a_window_of_which_nothing_is_left_counts_nothing() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    windows = Batch.of(tokens(3, 12))
    windows.mask_NT[1, 1:] = False
    with_it = numbers_of(model, windows, [40, 0, 41])
    without_it = numbers_of(model, windows[::2], [40, 41])
    assert with_it == pytest.approx(without_it)


def test_overflow_is_infinite() -> None:
    in_range = measured(model_that_says_five(logit=2780.0), FIVES, 1)
    assert in_range == pytest.approx(math.exp(2780 / 4), rel=1e-3)
    assert measured(model_that_says_five(logit=2900.0), FIVES, 1) == math.inf


def test_an_infinite_perplexity_has_no_values_of_windows() -> None:
    task = Perplexity(["words"]).task("words", 5, Batch.of(FIVES), torch.tensor([10]))
    measurement = task.run(model_that_says_five(logit=2900.0))
    bits = 2900 / math.log(2)
    assert measurement.numbers == {
        "words/perplexity@5": math.inf,
        "words/bits_per_byte@5": pytest.approx(bits / 10),
    }
    assert list(measurement.documents) == ["words/bits_per_byte@5"]


def test_half_precision_logits_are_scored_in_float32() -> None:
    def zeros(hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:-1], VOCAB, dtype=torch.bfloat16)

    model = model_with_logits(zeros)
    assert measured(model, tokens(), batch_size=4) == pytest.approx(VOCAB, rel=1e-6)
