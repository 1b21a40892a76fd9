"""Prompts with answers are formatted, by a chat template or as plain text, and cut into windows.

The mask of these windows is true for all tokens, or only for the tokens of answers.
"""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flap.data import Prompt, Windows
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


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path, tokenizer: PreTrainedTokenizerFast, wanted: Wanted) -> Windows:
    return read_windows("calibration", str(path), tokenizer, wanted, max_length=None)


@pytest.mark.parametrize(("last", "gap"), [("the dog", " "), ("  the dog\n", "")])
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
    write_rows(path, ROWS)
    [text] = read(path, tokenizer, Wanted(1, 4, 0, "false")).existing
    assert text.documents == ("the cat sat on mat dog", "a dog ran")


def test_an_answer_through_the_template_counts_with_its_end(
    chatting: PreTrainedTokenizerFast,
) -> None:
    document, (first, end) = answered(Prompt(TURNS, None), "ran", chatting, chat=True)
    assert document[:first] == question(Prompt(TURNS, None), chatting, chat=True)
    assert document[first:end] == "ran </s> "
    # With this template, the rendered conversation does not contain the generation prompt.
    chatting.chat_template = TEMPLATE.replace("[assistant] ", "[think] ")
    document, (first, end) = answered(Prompt(TURNS, None), "ran", chatting, chat=True)
    assert document[first:end] == "ran </s> "


def test_templates_are_asked_for_no_thoughts(chatting: PreTrainedTokenizerFast) -> None:
    thinks = "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    chatting.chat_template = TEMPLATE + thinks
    prompt = Prompt(TURNS, None)
    assert "<think>" not in question(prompt, chatting, chat=True)
    document, _ = answered(prompt, "ran", chatting, chat=True)
    assert "<think>" not in document


@pytest.mark.parametrize(
    ("answer", "span"), [("<think> it </think> ran", " ran </s> "), ("<think> it </think>", "")]
)
def test_thoughts_that_a_template_leaves_out_are_not_in_the_span(
    answer: str, span: str, chatting: PreTrainedTokenizerFast
) -> None:
    without_thoughts = TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]")
    chatting.chat_template = (
        # Like the template of DeepSeek-R1, this template leaves out the thoughts (the model's
        # reasoning) in messages.
        "{% if not add_generation_prompt %}<s> {% endif %}" + without_thoughts
    )
    document, (first, end) = answered(Prompt(TURNS[:1], None), answer, chatting, chat=True)
    assert document[first:end] == span


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
    "{% if loop.last and message['role'] == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THOUGHTS_ASKED_FOR = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% else %}"
    "{{ '<|model|>' + message['content'].split('</think>')[-1] + '<|im_end|>' }}"
    "{% endif %}"
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
    "{% for message in messages %}"
    "{{ message['role'] + ':' + message['content'] | tojson + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# Each value consists of a chat template, and of the texts that this template prints directly before
# and after an answer. These texts belong to the answer's span, the range of characters that counts
# as the answer.
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
    write_rows(path, ROWS * 20)
    wanted = Wanted(3, 16, 0, bos, Answers(counted=counted))
    return read_windows("calibration", {str(path): part}, tokenizer, wanted, None)


def words(tokens: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(tokens.tolist()))


@pytest.mark.parametrize("bos", ["false", "true"])
@pytest.mark.parametrize("part", [{}, {"chat_template": False}])
def test_only_tokens_of_answers_are_in_the_mask(
    part: dict[str, Any], bos: str, tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    windows = windows_of(path, chatting, "answers", bos, **part)
    of_all = windows_of(path, chatting, "all", bos, **part)
    tokens_NT = windows.batch.tokens_NT
    mask_NT = windows.batch.mask_NT
    assert torch.equal(tokens_NT, of_all.batch.tokens_NT)
    assert of_all.batch.mask_NT.all()
    assert torch.equal(of_all.in_answers.mask_NT, mask_NT)
    assert windows.key != of_all.key

    # The template ends an answer with </s>, which counts as a token of the answer. If prompts are
    # formatted as plain text, no </s> follows an answer.
    end = set() if part else {"</s>"}
    assert words(tokens_NT[mask_NT], chatting) == {"mat", "dog", "ran"} | end
    others = words(tokens_NT[~mask_NT], chatting)
    assert {"the", "cat", "sat", "on", "a"} <= others
    assert "mat" not in others


def test_a_file_that_has_text_too_is_read_as_prompts(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [row | {"text": "under the old tree"} for row in ROWS])
    [text] = read(path, chatting, Wanted(1, 4, 0, "false")).existing
    assert text.documents[0].startswith("[user] the cat sat on </s> ")


def test_prompts_that_are_too_few_with_the_longest_answers_are_refused(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": "the cat"}])
    message = "4 windows of 16 tokens are too few for the 9 .* a longer text or more prompts"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", chatting, Wanted(9, 16, 0, "false", Answers("self")))


def _self_answered(
    path: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_length: int
) -> Windows:
    """Read prompts for one window of four tokens. The model has not answered the prompts yet.

    Each answer will have at most four tokens.
    """
    write_rows(path, [{"prompt": prompt} for prompt in prompts])
    wanted = Wanted(1, 4, 0, "false", Answers("self", max_new_tokens=4))
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
    write_rows(path, [{"prompt": prompt} for prompt in [*too_long, "cat"]])
    wanted = Wanted(4, 4, 0, "false", Answers("self", max_new_tokens=4))
    with pytest.raises(ValueError, match=r"some\.jsonl: 1 windows of 4 tokens are too few"):
        read_windows("calibration", str(path), tokenizer, wanted, max_length=8)


@pytest.mark.parametrize(
    ("condition", "turns"),
    [
        ("messages|length > 2", TURNS),
        ("messages[-1:] == messages[-2:-1]", [*TURNS[:2], TURNS[1]]),
    ],
)
def test_a_conversation_that_the_template_refuses_is_named(
    condition: str,
    turns: Sequence[dict[str, str]],
    tmp_path: Path,
    chatting: PreTrainedTokenizerFast,
) -> None:
    refusal = f"{{% if {condition} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    chatting.chat_template = TEMPLATE + refusal
    write_rows(tmp_path / "b.jsonl", [{"messages": TURNS[:1]}, {"messages": turns}])
    message = r"b\.jsonl: row 2: the tokenizer's chat template refuses .*\(no\)"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "b.jsonl", chatting, Wanted(3, 16, 0, "false", Answers("self")))


def test_windows_without_a_token_of_an_answer_are_refused(
    tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    write_rows(tmp_path / "c.jsonl", [{"prompt": "the cat sat on " * 200, "answer": "mat"}])
    message = r"=answers: expected all, or longer windows: of 48 tokens of c\.jsonl 0 are"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "c.jsonl", chatting, Wanted(3, 16, 0, "false", ONLY))


@pytest.mark.parametrize("bos", ["false", "true"])
def test_a_bos_that_the_template_prints_is_there_once(
    bos: str, tmp_path: Path, chatting: PreTrainedTokenizerFast
) -> None:
    chatting.chat_template = "<s> " + TEMPLATE
    windows = windows_of(tmp_path / "a.jsonl", chatting, "answers", bos)
    [text] = windows.existing
    assert all(document.startswith("<s>") == (bos == "false") for document in text.documents)
    of_answers = windows.batch.tokens_NT[windows.batch.mask_NT]
    assert words(of_answers, chatting) == {"mat", "dog", "ran", "</s>"}
