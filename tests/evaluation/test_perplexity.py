"""Perplexity against values known by hand and a float64 loop."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flap.data import NO_TOKEN
from flap.evaluation import Divergence, Perplexity, perplexity
from flap.evaluation.perplexity import linearised, ratio_values, window_losses
from flap.models import PlacedModel, Resident
from tests.cases import ARCHITECTURES, VOCAB, tiny_model, tokens
from tests.helpers.tokenizers import TRICKY, gemma, smollm


def says(logits: Callable[[Tensor], Tensor]) -> Resident:
    """A model whose LM head gives logits of its own choice, whatever the hidden states are."""
    model = tiny_model("llama-mha")
    model.lm_head.forward = logits
    return Resident(model)


def always(token: int, logit: float) -> Resident:
    logits_V = torch.nn.functional.one_hot(torch.tensor(token), VOCAB) * logit
    return says(lambda hidden: logits_V.expand(*hidden.shape[:-1], VOCAB))


def measured(model: PlacedModel, tokens_NT: Tensor, batch_size: int) -> float:
    return perplexity.perplexity(window_losses(model, tokens_NT, batch_size))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_float64_loop(architecture: str) -> None:
    model = tiny_model(architecture)
    total = 0.0
    count = 0
    for window_T in tokens(5, 17):
        log_prob_TV = model(input_ids=window_T[None]).logits[0].double().log_softmax(-1)
        for t in range(1, len(window_T)):
            total -= log_prob_TV[t - 1, window_T[t]].item()
            count += 1
    assert measured(Resident(model), tokens(5, 17), batch_size=2) == pytest.approx(
        math.exp(total / count), rel=1e-5
    )


@pytest.mark.parametrize("positions", [1, 3, 23, 1000])
def test_logits_are_made_in_chunks_which_change_nothing(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("qwen2-gqa-tied")
    expected = measured(Resident(model), tokens(), batch_size=2)
    sizes = []
    monkeypatch.setattr(perplexity, "LOGITS_BYTES", positions * 4 * VOCAB)
    model.lm_head.register_forward_hook(lambda module, args, logits: sizes.append(logits.shape[-2]))
    assert measured(Resident(model), tokens(), batch_size=2) == pytest.approx(expected, rel=1e-6)
    assert max(sizes) == min(positions, 2 * 23) and sum(sizes) == 6 * 23


def test_several_windows_of_several_texts(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = Perplexity([str(text_file)], seq_len=[8, 16]).prepare(tokenizer, 128)
    assert [task.name for task in tasks] == ["words.txt/perplexity@8", "words.txt/perplexity@16"]
    assert tasks[0].identity != tasks[1].identity
    assert tasks[0].origin == str(text_file)


@pytest.mark.parametrize("evaluator", [Perplexity, Divergence])
def test_the_batch_size_is_part_of_the_identity(
    evaluator: type[Perplexity | Divergence], text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [small] = evaluator([str(text_file)], batch_size=2).prepare(tokenizer, 128)
    [large] = evaluator([str(text_file)], batch_size=8).prepare(tokenizer, 128)
    assert small.name == large.name and small.identity != large.identity


def test_documents_of_a_perplexity_have_it_as_their_mean(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = Perplexity([str(text_file)], seq_len=16).prepare(tokenizer, 128)
    found = task.run(Resident(tiny_model("llama-gqa")))
    assert list(found.documents) == ["words.txt/perplexity@16", "words.txt/bits_per_byte@16"]
    assert found.better == dict.fromkeys(found.numbers, "lower")
    for name, values in found.documents.items():
        assert len(values) == 187 and sum(values) / 187 == pytest.approx(found.numbers[name])


def test_bits_per_byte_are_of_the_text_that_is_scored(
    text_file: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    [task] = Perplexity([str(text_file)], seq_len=16, max_tokens=32).prepare(tokenizer, 128)
    found = task.run(Resident(tiny_model("llama-gqa"))).numbers
    words = text_file.read_text().split()
    scored = sum(len(word.encode()) for words_T in (words[1:16], words[17:32]) for word in words_T)
    nats = 30 * math.log(found["words.txt/perplexity@16"])
    assert found["words.txt/bits_per_byte@16"] == pytest.approx(nats / math.log(2) / scored)


def test_the_error_of_a_difference_is_that_of_leaving_windows_out() -> None:
    """Of the difference of two perplexities: the delta method against the jackknife."""
    generator = torch.Generator().manual_seed(0)
    windows = 3 + 0.5 * torch.randn(400, generator=generator)
    shift = 0.1 * torch.randn(400, generator=generator)
    pair = windows.double(), (1.1 * windows + 0.2 + shift).double()
    differences_N = linearised(pair[1]) - linearised(pair[0])
    error = (differences_N.std() / 20).item()
    left_out = torch.tensor(
        [difference([torch.cat([one[:i], one[i + 1 :]]) for one in pair]) for i in range(400)]
    )
    assert error == pytest.approx(jackknife(left_out), rel=0.01)
    apart = math.hypot(*((linearised(one).std() / 20).item() for one in pair))
    assert differences_N.mean().item() == pytest.approx(difference(pair)) and error < 0.5 * apart


def test_windows_of_another_tokenizer_hold_the_same_text(tmp_path: Path) -> None:
    (file := tmp_path / "text.txt").write_text("".join(TRICKY) * 4)
    before = smollm()
    after = gemma()
    evaluator = Perplexity([str(file)], seq_len=16)
    tasks = evaluator.prepare(before, 128) + evaluator.prepare_again(after, 128, before)
    assert len({task.name for task in tasks}) == 1 and tasks[0].identity != tasks[1].identity
    windows = [task.run.keywords["tokens_NT"] for task in tasks]
    texts = [before.decode(ids).strip("\ufffd") for ids in windows[0].tolist()]
    assert texts == [after.decode([i for i in ids if i != NO_TOKEN]) for ids in windows[1].tolist()]


def test_windows_of_another_tokenizer_end_with_the_context(tmp_path: Path) -> None:
    (file := tmp_path / "text.txt").write_text("".join(TRICKY) * 4)
    [task] = Perplexity([str(file)], seq_len=16).prepare_again(gemma(), 16, smollm())
    [longer] = Perplexity([str(file)], seq_len=16).prepare_again(gemma(), None, smollm())
    windows = [one.run.keywords["tokens_NT"] for one in (task, longer)]
    assert torch.equal(windows[0], windows[1][:, :16]) and windows[1].shape[1] > 16
    assert (task.run.keywords["bytes_N"] <= longer.run.keywords["bytes_N"]).all()


def test_a_window_that_is_filled_up_is_scored_as_it_is_alone() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    windows = tokens(3, 12)
    filled = torch.nn.functional.pad(windows, (0, 5), value=NO_TOKEN)
    filled[0, 9:] = NO_TOKEN
    expected = [window_losses(model, window_NT, 1) for window_NT in (windows[:1, :9], windows[1:])]
    assert window_losses(model, filled, 2).tolist() == pytest.approx(
        torch.cat(expected).tolist(), rel=1e-5
    )
    numbers = (
        Perplexity(["words"]).task("w", 17, filled, torch.tensor([30, 40, 41])).run(model).numbers
    )
    nats = window_losses(model, filled, 1) @ torch.tensor([8, 11, 11]).double()
    assert numbers["w/perplexity@17"] == pytest.approx(math.exp(nats / 30))
    assert numbers["w/bits_per_byte@17"] == pytest.approx(nats.item() / math.log(2) / 111)


def test_a_window_of_which_nothing_is_left_counts_nothing() -> None:
    model = Resident(tiny_model("qwen3-gqa"))
    windows = tokens(3, 12)
    windows[1, 1:] = NO_TOKEN
    found = [
        Perplexity(["words"]).task("w", 12, kept, torch.tensor(sizes)).run(model).numbers
        for kept, sizes in ((windows, [40, 0, 41]), (windows[::2], [40, 41]))
    ]
    assert found[0] == pytest.approx(found[1])


def test_so_is_the_error_of_bits_per_byte() -> None:
    generator = torch.Generator().manual_seed(0)
    bytes_N = torch.randint(300, 700, (400,), generator=generator)
    bits_N = bytes_N * (1 + 0.2 * torch.randn(400, generator=generator).double())
    values_N = ratio_values(bits_N, bytes_N)
    left_out = torch.tensor([ratio(bits_N, bytes_N, torch.arange(400) != i) for i in range(400)])
    assert (values_N.std() / 20).item() == pytest.approx(jackknife(left_out), rel=0.01)
    assert values_N.mean().item() == pytest.approx(ratio(bits_N, bytes_N, torch.ones(400).bool()))


def ratio(one_N: Tensor, other_N: Tensor, kept_N: Tensor) -> float:
    return (one_N[kept_N].sum() / other_N[kept_N].sum()).item()


def jackknife(left_out: Tensor) -> float:
    """The standard error of a number, of its values without each of n windows."""
    n = len(left_out)
    return ((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt().item()


def difference(pair: Sequence[Tensor]) -> float:
    return perplexity.perplexity(pair[1]) - perplexity.perplexity(pair[0])


def test_overflow_is_infinite() -> None:
    in_range = measured(always(5, logit=2780.0), torch.tensor([[7, 5, 5, 5, 8]]), 1)
    assert in_range == pytest.approx(math.exp(2780 / 4), rel=1e-3)
    assert measured(always(5, logit=2900.0), torch.tensor([[7, 5, 5, 5, 8]]), 1) == math.inf


def test_an_infinite_perplexity_has_no_values_of_windows() -> None:
    task = Perplexity(["words"]).task(
        "words", 5, torch.tensor([[7, 5, 5, 5, 8]]), torch.tensor([10])
    )
    found = task.run(always(5, logit=2900.0))
    bits = {"words/bits_per_byte@5": pytest.approx(2900 / math.log(2) / 10)}
    assert (
        found.numbers == {"words/perplexity@5": math.inf, **bits}
        and found.documents.keys() == bits.keys()
    )


def test_half_precision_logits_are_scored_in_float32() -> None:
    half = says(lambda hidden: torch.zeros(*hidden.shape[:-1], VOCAB, dtype=torch.bfloat16))
    assert measured(half, tokens(), batch_size=4) == pytest.approx(VOCAB, rel=1e-6)
