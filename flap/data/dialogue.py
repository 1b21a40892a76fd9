"""Prompts with their answers as a text: through the tokenizer's chat template where there is one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.data.text import Prompt, Span, Text
from flap.storage import digest


class Answers(NamedTuple):
    """Who answers prompts, how, and which tokens count of a text that has answers; the search judges by answers."""

    writer: str = "given"  # given: by the file; self: by the model
    counted: str = "all"  # tokens: all, or those of the answers
    max_new_tokens: int = 64  # of an answer that the model writes
    temperature: float = 0.0  # at which it samples; 0: always the likeliest token


GIVEN = Answers()
PLACEHOLDERS = ("x", "y")  # two answers that have no character in common


def plain_text(turns: Sequence[dict[str, Any]]) -> str:
    """Return turns one after another, each as it is: spaces and line ends are part of code."""
    gaps = ["", *("\n\n" if turn["role"] == "user" else " " for turn in turns[1:])]
    return "".join(
        gap + str(turn.get("content", "")) for gap, turn in zip(gaps, turns, strict=True)
    )


def question(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return what the model reads before it answers. chat: through the template; else turn after turn.

    Raises:
        ValueError: the template refuses the conversation.
    """
    if not chat:
        return plain_text(prompt.messages)
    return _templated(prompt.messages, tokenizer, add_generation_prompt=True)


def question_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Return the tokens that the model reads before it answers.

    Raises:
        ValueError: the template refuses the conversation.
    """
    text = question(prompt, tokenizer, chat)
    # A template prints BOS itself. In plain text the tokenizer may put it there.
    has_bos = chat and text.startswith(tokenizer.bos_token or "")
    ids: list[int] = tokenizer(text, add_special_tokens=not has_bos, verbose=False).input_ids
    return ids


def separated(prompt: Prompt, answer: str) -> str:
    """Return an answer from a file as it follows its question in plain text: after a space.

    If the question ends with white space, or the answer begins with it, no space is added.
    """
    asked = plain_text(prompt.messages)
    if asked[-1:].isspace() or answer[:1].isspace():
        return answer
    return " " + answer


def rendered(prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return a document of question and answer.

    In plain text the answer follows the question as it is. `separated` puts a space between them.

    Raises:
        ValueError: the template refuses the conversation.
    """
    if not chat:
        return plain_text(prompt.messages) + answer
    return _templated([*prompt.messages, {"role": "assistant", "content": answer}], tokenizer)


def answered(
    prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> tuple[str, Span]:
    """Return a document of question and answer, and the span of the answer in it.

    The span includes what the template prints after the answer, such as the end of the turn. It is
    empty if the template leaves the whole answer out, as some do with thoughts.

    Raises:
        ValueError: the template refuses the conversation.
    """
    document = rendered(prompt, answer, tokenizer, chat)
    if not chat:
        return document, (len(plain_text(prompt.messages)), len(document))

    # The template prints the answer where two other answers make a difference.
    other, another = (rendered(prompt, text, tokenizer, chat) for text in PLACEHOLDERS)
    before = _common_start(other, another)
    after = _common_start(other[::-1], another[::-1])[::-1]
    if document == before + after:
        return document, (len(document), len(document))

    # Thoughts may be printed earlier than that.
    start = len(_common_start(document, before))
    # A space that the model was not given is the beginning of its first token.
    given = question(prompt, tokenizer, chat)
    if document[:start].endswith(" ") and not given.endswith(" "):
        start -= 1
    return document, (start, len(document))


def _common_start(first: str, second: str) -> str:
    """Return the characters that two texts have in common at their beginning."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:position]
    return min(first, second, key=len)


def _templated(
    messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> str:
    try:  # without thoughts, as in evaluation
        return str(
            tokenizer.apply_chat_template(
                [*messages], tokenize=False, enable_thinking=False, **options
            )
        )
    except (
        Exception
    ) as error:  # templates are programs of the tokenizer and raise errors of any type
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation ({one_line(error, 120)})"
        ) from error


class Asked(NamedTuple):
    """The prompts of a text, and how they are answered."""

    prompts: tuple[Prompt, ...]
    name: str
    origin: str
    chat: bool  # they go through the chat template
    answers: Answers

    @property
    def key(self) -> list[object]:
        """All that the prompts and the manner of answering them depend on."""
        prompts = [[list(one.messages), one.answer] for one in self.prompts]
        own = self.answers
        return [
            self.name,
            digest(prompts),
            self.chat,
            own.writer,
            own.max_new_tokens,
            own.temperature,
        ]


def dialogues(
    asked: Asked,
    answers: Sequence[tuple[Prompt, str]],
    tokenizer: PreTrainedTokenizerBase,
    bos: bool,
) -> Text:
    """Return prompts with their answers as a text, one document each.

    bos: windows begin with BOS, so none that a template prints is in front of a document.
    """
    documents = list[str]()
    spans = list[Span]()
    for prompt, answer in answers:
        document, (first, end) = answered(prompt, answer, tokenizer, asked.chat)
        own = (
            len(str(tokenizer.bos_token))
            if bos and document.startswith(str(tokenizer.bos_token))
            else 0
        )
        documents.append(document[own:])
        spans.append((first - own, end - own))
    return Text.joined(asked.name, documents, asked.origin, counted=spans)
