"""The model's answers to prompts are the same in every run, interrupted or not.

By default, the answers are decoded greedily. With a temperature, they are sampled with a seed.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flap.data import Part, Prompt, Text, Windows
from flap.data.dialogue import Answers, Asked
from flap.method.calibration.answers import PROMPTS, answer, key, text_of
from flap.models import Resident
from flap.storage import WorkFolder
from tests.cases import tiny_model
from tests.helpers.placed import placed_at
from tests.helpers.tokenizers import KINDS

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "ran", "a", "dog"]


def asking(
    tokenizer: PreTrainedTokenizerFast, options: Answers, prompts: int = 60, num_samples: int = 4
) -> Windows:
    """Return `Windows` whose text consists of prompts that the model is to answer.

    A prompt has 3 to 6 random words.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(WORDS), (prompts, 6), generator=generator).tolist()
    rows = list[Prompt]()
    for n, draw in enumerate(draws):
        text = " ".join(WORDS[w] for w in draw[: 3 + n % 4])
        rows.append(Prompt(({"role": "user", "content": text},), None))
    asked = {0: Asked(tuple(rows), "my.jsonl", "/my.jsonl", False, options)}
    return Windows((Part("my.jsonl"),), (None,), tokenizer, num_samples, 24, seed=0, asked=asked)


def test_they_are_the_likeliest_words_after_each_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Resident(tiny_model("llama-gqa"))
    windows = asking(tokenizer, Answers("self", max_new_tokens=5))
    written = answer(model, windows, 0, context=64)
    options = GenerationConfig(
        do_sample=False, max_new_tokens=5, eos_token_id=model.model.generation_config.eos_token_id
    )
    for messages, text in written["answered"][:8]:
        prompt_1T = torch.tensor([tokenizer(messages[0]["content"]).input_ids])
        [whole_T] = model.model.generate(prompt_1T, generation_config=options)
        expected_T = whole_T[prompt_1T.shape[1] :]
        assert text == " " + tokenizer.decode(expected_T, skip_special_tokens=True)
    drawn = windows.written(0, text_of(written, windows, 0))
    assert drawn.batch.tokens_NT.shape == (4, 24) and drawn.key == windows.key
    assert written["begins_with"].endswith(" prompts of my.jsonl") and written["tokens"] > 0


CONTINUED = [
    ("x = np.array([1, 2,", "3])"),
    ("x = np", ".array([1, 2])"),
    ("It was in 19", "99, and then"),
    ("the quick bro", "wn fox"),
    ("the quick brown", " fox jumps"),
    ("x =  ", "5"),
    ("x =", "\n\ty"),
    ("\u4e2d", "\u6587\u5b57"),
    ("the cat", " sat .  It is n't old , is it ?"),
]


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "llama-spm", "llama-spm-file", "gemma"])
@pytest.mark.parametrize(("asked", "written"), CONTINUED)
def test_a_plain_prompt_and_its_answer_are_the_text_that_the_model_has_written(
    asked: str, written: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.clean_up_tokenization_spaces = True  # some real tokenizers set this option
    text = _document(asked, inside_a_text(written, tokenizer), tokenizer, monkeypatch)
    assert text.documents == (asked + written,)
    assert text.counted == ((len(asked), len(asked + written)),)


@pytest.mark.parametrize("kind", ["smollm", "gemma"])
def test_a_character_that_the_longest_answer_cuts_is_left_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = KINDS[kind]()
    for written in (" sat \u4e2d\u6587", "\u6587 sat \u6587"):
        answer_ids = inside_a_text(written, tokenizer)[:-1]
        text = _document("the \u4e2d", answer_ids, tokenizer, monkeypatch)
        assert text.documents == ("the \u4e2d" + written[:-1],)


def inside_a_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that a text has when it stands after another text."""
    before = "\ue000"  # no token contains this character together with other characters
    ids_before = tokenizer(before, add_special_tokens=False).input_ids
    ids: list[int] = tokenizer(before + text, add_special_tokens=False).input_ids
    return ids[len(ids_before) :]


def _document(
    asked: str,
    answer_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> Text:
    """Return the calibration text that consists of a prompt and an answer with these token ids.

    The prompt is not formatted with a chat template.
    """
    monkeypatch.setattr("flap.method.calibration.answers.continued", lambda *_: [answer_ids])
    prompt = Prompt(({"role": "user", "content": asked},), None)
    prompts = {0: Asked((prompt,), "my.jsonl", "/my.jsonl", False, Answers("self"))}
    windows = Windows((Part("my.jsonl"),), (None,), tokenizer, 1, 24, seed=0, asked=prompts)
    facts = answer(Resident(tiny_model("llama-gqa")), windows, 0, context=None)
    return text_of(facts, windows, 0)


def test_an_answer_ends_where_the_tokenizer_says_and_one_that_does_not_end_is_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = Resident(tiny_model("llama-gqa"))
    windows = asking(tokenizer, Answers("self", max_new_tokens=5))
    model.model.generation_config.eos_token_id = None
    whole = answer(model, windows, 0, context=64)
    assert whole["cut"] == len(whole["answered"])
    words = Counter(word for _, text in whole["answered"] for word in text.split())
    [(common, _)] = words.most_common(1)
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = common
    ended = answer(model, replace(windows, tokenizer=tokenizer), 0, context=64)
    assert ended["cut"] < len(ended["answered"])
    assert not any(common in text.split() for _, text in ended["answered"])


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_the_model_reads_bos_once_whoever_puts_it_there(
    begin: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding = deepcopy(tokenizer)
    seen = list[list[int]]()
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    windows = asking(adding, Answers("self", max_new_tokens=4))
    adding.chat_template = begin + "{% for turn in messages %} {{ turn.content }}{% endfor %}"
    monkeypatch.setattr(
        "flap.method.calibration.answers.continued", lambda _, rows, *__: seen.extend(rows) or rows
    )
    in_chat = replace(windows, asked={0: windows.asked[0]._replace(chat=True)})
    answer(Resident(tiny_model("llama-gqa")), in_chat, 0, context=64)
    assert {(row[0], row.count(1)) for row in seen} == {(1, 1)}


def test_a_temperature_samples_by_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    model = Resident(tiny_model("llama-gqa"))
    hot = asking(tokenizer, Answers("self", "all", 5, temperature=1.5))
    cold = asking(tokenizer, Answers("self", "all", 5, temperature=0.0))
    sampled = answer(model, hot, 0, 64)["answered"]
    assert sampled == answer(model, hot, 0, 64)["answered"]
    assert sampled != answer(model, cold, 0, 64)["answered"]
    assert key(hot, 0) != key(cold, 0)
    of_answers = asking(tokenizer, Answers("self", "answers", 5))
    assert key(of_answers, 0) == key(cold, 0)  # the option `count` does not change the text


def test_no_more_prompts_are_answered_than_the_windows_take(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = Resident(tiny_model("llama-gqa"))
    options = Answers("self", max_new_tokens=4)
    few = asking(tokenizer, options, 60, num_samples=1)
    all_of_them = asking(tokenizer, options, 60, num_samples=40)
    assert len(answer(model, few, 0, 64)["answered"]) < PROMPTS
    written = answer(model, all_of_them, 0, 64)
    assert len(written["answered"]) + written["dropped"] == 60
    with pytest.raises(
        ValueError, match=r"my\.jsonl: .* windows of 24 tokens are too few for the 40"
    ):
        _ = all_of_them.written(0, text_of(written, all_of_them, 0)).batch


def test_a_prompt_that_does_not_fit_the_context_is_dropped(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    windows = asking(tokenizer, Answers("self", max_new_tokens=4), 12)
    written = answer(Resident(tiny_model("llama-gqa")), windows, 0, context=8)
    assert written["dropped"] >= 6 and all(
        len(m[0]["content"].split()) <= 4 for m, _ in written["answered"]
    )
    answered = len(written["answered"])
    assert (
        f"my.jsonl: {answered} of 12 prompts are answered; 6 are too long for the context"
        in caplog.text
    )


def test_a_model_that_answers_in_loops_is_refused_without_advice_to_draw_less(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = asking(tokenizer, Answers("self", max_new_tokens=40), 12)
    monkeypatch.setattr(
        "flap.method.calibration.answers.continued", lambda _, rows, *__: [[5] * 40] * len(rows)
    )
    with pytest.raises(
        ValueError, match=r"0 of 12 prompts are answered; .* 12 answers are"
    ) as told:
        answer(Resident(tiny_model("llama-gqa")), windows, 0, context=64)
    assert "; take calibration.temperature=1, other prompts" in str(told.value)
    assert "num_samples" not in str(told.value)


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_an_interrupted_run_writes_what_is_missing(
    placement: str,
    tokenizer: PreTrainedTokenizerFast,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows = asking(tokenizer, Answers("self", max_new_tokens=4), 60, 30)
    whole = answer(
        placed_at(placement, model_dir, tmp_path / "a"),
        windows,
        0,
        64,
        WorkFolder(tmp_path / "work"),
    )
    placed = placed_at(placement, model_dir, tmp_path / "b")
    monkeypatch.setattr(
        type(placed.model), "generate", lambda *_, **__: pytest.fail("written again")
    )
    again = answer(placed, windows, 0, 64, WorkFolder(tmp_path / "work"))
    assert again["answered"] == whole["answered"] and again["seconds"] == whole["seconds"]
