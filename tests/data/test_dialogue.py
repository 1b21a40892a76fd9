"""Prompts with answers as windows: the template or plain turns, and which tokens count."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.data import Prompt, Windows
from flap.data.counted import unmarked
from flap.data.dialogue import Answers, answered, question, separated
from flap.data.read_windows import Wanted, read_windows

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TURNS = (
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "the dog"},
)
ONLY = Answers(counted="answers")
ROWS: list[dict[str, Any]] = [
    {"prompt": "the cat sat on", "answer": "mat dog"},
    {"prompt": "a dog", "answer": "ran"},
]


@pytest.fixture
def chatting(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    copy = deepcopy(tokenizer)
    copy.chat_template = TEMPLATE
    return copy


@pytest.mark.parametrize(
    ("last", "gap"),
    [("the dog", " "), ("  the dog\n", "")],  # white space is part of code
)
def test_turns_are_plain_text_where_there_is_no_template(
    last: str, gap: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = Prompt((*TURNS[:2], {"role": "user", "content": last}), None)
    assert question(prompt, tokenizer, chat=False) == f"the cat sat\n\n{last}"
    document, (first, end) = answered(prompt, separated(prompt, "ran"), tokenizer, chat=False)
    assert document == f"the cat sat\n\n{last}{gap}ran"
    assert document[first:end] == f"{gap}ran"


def test_an_answer_that_continues_a_word_of_a_plain_prompt_gets_no_space(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = Prompt(({"role": "user", "content": "It was in 19"},), None)
    document, (first, end) = answered(prompt, "99.", tokenizer, chat=False)
    assert document == "It was in 1999."
    assert document[first:end] == "99."


def test_an_answer_from_a_file_keeps_the_space_in_front_of_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    [text] = read_windows(
        "calibration", str(path), tokenizer, Wanted(1, 4, 0, "false"), None
    ).existing
    assert text.documents == ("the cat sat on mat dog", "a dog ran")


def test_an_answer_through_the_template_counts_with_its_end(
    chatting: PreTrainedTokenizerFast,
) -> None:
    document, (first, end) = answered(Prompt(TURNS, None), "ran", chatting, chat=True)
    assert document[:first] == question(Prompt(TURNS, None), chatting, chat=True)
    assert document[first:end] == "ran </s> "
    chatting.chat_template = TEMPLATE.replace(
        "[assistant] ", "[think] "
    )  # the prompt is then no beginning of it
    document, (first, end) = answered(Prompt(TURNS, None), "ran", chatting, chat=True)
    assert document[first:end] == "ran </s> "


def test_thoughts_are_asked_for_by_no_template_and_count_in_none(
    chatting: PreTrainedTokenizerFast,
) -> None:
    thinks = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    chatting.chat_template = TEMPLATE + thinks
    texts = (
        question(Prompt(TURNS, None), chatting, True),
        *answered(Prompt(TURNS, None), "ran", chatting, True)[:1],
    )
    assert "<think>" not in "".join(texts)
    chatting.chat_template = "{% if not add_generation_prompt %}<s> {% endif %}" + TEMPLATE.replace(
        "message.content", "message.content.split('</think>')[-1]"
    )  # leaves thoughts out, as R1's
    for answer, counted in (("<think> it </think> ran", " ran </s> "), ("<think> it </think>", "")):
        document, (first, end) = answered(Prompt(TURNS[:1], None), answer, chatting, True)
        assert document[first:end] == counted


SMOLLM2 = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% for message in messages %}"
    "{{ '<|header|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|end|>\n\n' }}{% endif %}"
)
BRACKETS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<s>[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' </s>' }}{% endif %}"
    "{% endfor %}"
)
EMPTY_THOUGHTS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THOUGHTS_ASKED_FOR = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% else %}{{ '<|model|>' + message['content'].split('</think>')[-1] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|model|><think>\n\n</think>\n\n' }}{% endif %}"
)
THOUGHTS_SHOWN = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% set parts = message['content'].split('</think>') %}"
    "{% if message['role'] == 'assistant' %}"
    "{% set thoughts = parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' %}"
    "{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}"
    "{{ parts[-1].strip() + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n\n</think>\n\n' }}{% endif %}"
)
WITHOUT_A_GENERATION_PROMPT = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}"
)
ANOTHER_BEGINNING = (
    "{% if not add_generation_prompt %}{{ '<|training|>' }}{% endif %}"
    "{% for message in messages %}{{ message['role'] + ':' + message['content'] | tojson + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# what stands in front of an answer in the span, and what comes after it
SHAPES = {
    "smollm2": (SMOLLM2, "", "<|im_end|>\n"),
    "headers": (HEADERS, "", "<|eot|>"),
    "brackets": (BRACKETS, " ", " </s>"),
    "empty thoughts": (EMPTY_THOUGHTS, "", "<|im_end|>\n"),
    "thoughts asked for": (THOUGHTS_ASKED_FOR, "", "<|im_end|>"),
    "thoughts shown": (THOUGHTS_SHOWN, "", "<|im_end|>"),
    "without a generation prompt": (WITHOUT_A_GENERATION_PROMPT, " ", "\n"),
    "another beginning": (ANOTHER_BEGINNING, "", '"<|im_end|>'),
}
SHORT_ANSWERS = [
    "ran",
    "m",
    "<",
    "e",
    "x",
    "yx",
    "the dog",
    "sat",
    "assistant",
    "im_end",
    "|eot|",
    "think",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("answer", SHORT_ANSWERS)
def test_the_span_is_the_answer_and_its_end_whatever_it_says(
    shape: str, answer: str, chatting: PreTrainedTokenizerFast
) -> None:
    chatting.chat_template, gap, after = SHAPES[shape]
    document, (first, end) = answered(Prompt(TURNS, None), answer, chatting, chat=True)
    assert document[first:end] == gap + answer + after
    assert end == len(document)


@pytest.mark.parametrize(
    ("shape", "answer", "span"),
    [
        ("smollm2", "  m ", "  m <|im_end|>\n"),
        ("headers", "  m ", "m<|eot|>"),
        ("brackets", "  m ", " m </s>"),
        ("empty thoughts", "<think>m</think>\n\nm", "m<|im_end|>\n"),
        ("thoughts asked for", "<think>m</think>m", "m<|im_end|>"),
        ("thoughts shown", "<think>\nm\n</think>\n\nm", "m\n</think>\n\nm<|im_end|>"),
        ("another beginning", ' "m"', r""" \"m\""<|im_end|>"""),
    ],
)
def test_the_span_follows_a_template_that_changes_the_answer(
    shape: str, answer: str, span: str, chatting: PreTrainedTokenizerFast
) -> None:
    chatting.chat_template = SHAPES[shape][0]
    document, (first, end) = answered(Prompt(TURNS, None), answer, chatting, chat=True)
    assert document[first:end] == span


@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_answer_has_an_empty_span(shape: str, chatting: PreTrainedTokenizerFast) -> None:
    chatting.chat_template = SHAPES[shape][0]
    document, span = answered(Prompt(TURNS, None), "", chatting, chat=True)
    assert span == (len(document), len(document))


def windows_of(
    path: Path, tokenizer: PreTrainedTokenizerFast, counted: str, bos: str = "false", **part: Any
) -> Windows:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 20))
    wanted = Wanted(3, 16, 0, bos, Answers(counted=counted))
    return read_windows("calibration", {str(path): part}, tokenizer, wanted, None)


@pytest.mark.parametrize("bos", ["false", "true"])
@pytest.mark.parametrize("part", [{}, {"chat_template": False}])
def test_only_answers_count(
    part: dict[str, Any], bos: str, tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    windows = windows_of(tmp_path / "a.jsonl", chatting, "answers", bos, **part)
    all_NT = windows_of(tmp_path / "a.jsonl", chatting, "all", bos, **part).tokens_NT
    tokens_NT = windows.tokens_NT
    assert torch.equal(unmarked(tokens_NT), all_NT) and (all_NT >= 0).all()
    counted = set(chatting.convert_ids_to_tokens(tokens_NT[tokens_NT >= 0].tolist()))
    assert counted == {"mat", "dog", "ran"} | ({"</s>"} if not part else set())
    others = set(chatting.convert_ids_to_tokens(unmarked(tokens_NT[tokens_NT < 0]).tolist()))
    assert {"the", "cat", "sat", "on", "a"} <= others and "mat" not in others
    assert windows.key != windows_of(tmp_path / "a.jsonl", chatting, "all", bos, **part).key


def test_a_file_that_has_text_too_is_read_as_prompts(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row | {"text": "under the old tree"}) + "\n" for row in ROWS)
    )
    [text] = read_windows(
        "calibration", str(path), chatting, Wanted(1, 4, 0, "false"), None
    ).existing
    assert text.documents[0].startswith("[user] the cat sat on </s> ")


def test_prompts_that_are_too_few_for_any_answers_are_told_at_once(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "the cat"}) + "\n")
    wanted = Wanted(9, 16, 0, "false", Answers("self"))
    with pytest.raises(
        ValueError,
        match=r"4 windows of 16 tokens are too few for the 9 .* or take a longer text or more prompts",
    ):
        read_windows("calibration", str(tmp_path / "a.jsonl"), chatting, wanted, None)


def _self_answered(
    path: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_length: int
) -> Windows:
    """Return one window of prompts whose answers may have four tokens."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    answers = Answers("self", max_new_tokens=4)
    wanted = Wanted(1, 4, 0, "false", answers)
    return read_windows("calibration", str(path), tokenizer, wanted, max_length)


@pytest.mark.parametrize(
    ("max_length", "advice"),
    [(8, "calibration.max_new_tokens=2"), (6, "a model with a longer context")],
)
def test_prompts_that_are_all_too_long_for_the_context_are_refused(
    max_length: int, advice: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "long.jsonl"
    prompts = ["the cat sat on a mat", "the old dog ran under the tree and sat"]
    with pytest.raises(ValueError) as caught:
        _self_answered(path, tokenizer, prompts, max_length)
    assert str(caught.value) == (
        f"calibration.dataset={path}: none of its 2 prompts leaves room for an answer in the "
        f"model's context of {max_length} tokens: the shortest has 6 tokens, and "
        f"calibration.max_new_tokens=4; take shorter prompts or {advice}"
    )


def test_prompts_that_are_too_long_do_not_count_as_enough_for_the_windows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "some.jsonl"
    too_long = ["the cat sat on a mat"] * 20
    assert _self_answered(path, tokenizer, [*too_long, "the cat", "a dog"], 8).asked
    with pytest.raises(ValueError, match=r"some\.jsonl: 1 windows of 4 tokens are too few"):
        wanted = Wanted(4, 4, 0, "false", Answers("self", max_new_tokens=4))
        path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in [*too_long, "cat"]))
        read_windows("calibration", str(path), tokenizer, wanted, 8)


def test_what_a_template_refuses_and_answers_that_no_window_has_are_told(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    wanted = Wanted(3, 16, 0, "false", Answers("self"))
    twice = [*TURNS[:2], TURNS[1]]
    for condition, last in (
        ("messages|length > 2", TURNS),
        ("messages[-1:] == messages[-2:-1]", twice),
    ):
        chatting.chat_template = (
            f"{TEMPLATE}{{% if {condition} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
        )
        (tmp_path / "b.jsonl").write_text(
            "".join(json.dumps({"messages": one}) + "\n" for one in (TURNS[:1], last))
        )
        with pytest.raises(
            ValueError, match=r"b\.jsonl: row 2: the tokenizer's chat template refuses .*\(no\)"
        ):
            read_windows("calibration", str(tmp_path / "b.jsonl"), chatting, wanted, None)
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"prompt": "the cat sat on " * 200, "answer": "mat"}) + "\n"
    )
    with pytest.raises(
        ValueError,
        match=r"=answers: expected all, or longer windows: of 48 tokens of c\.jsonl 0 are",
    ):
        read_windows(
            "calibration",
            str(tmp_path / "c.jsonl"),
            chatting,
            Wanted(3, 16, 0, "false", ONLY),
            None,
        )


@pytest.mark.parametrize("bos", ["false", "true"])
def test_the_template_s_own_beginning_is_not_there_twice(
    bos: str, tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    chatting.chat_template = "<s> " + TEMPLATE
    windows = windows_of(tmp_path / "a.jsonl", chatting, "answers", bos)
    [text], tokens_NT = windows.existing, windows.tokens_NT
    assert all(document.startswith("<s>") == (bos == "false") for document in text.documents)
    assert set(chatting.convert_ids_to_tokens(tokens_NT[tokens_NT >= 0].tolist())) == {
        "mat",
        "dog",
        "ran",
        "</s>",
    }
