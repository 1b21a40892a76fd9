"""Format prompts and answers as a text, with or without the tokenizer's chat template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.data.text import Prompt, Span, Text
from flap.storage import digest


class Answers(NamedTuple):
    """Where the answers to prompts come from, and which tokens are used for statistics."""

    writer: str = "given"  # "given": the answers are in the file; "self": the model writes them
    # "all": all tokens are used for statistics; "answers": only tokens of answers are used
    counted: str = "all"
    max_new_tokens: int = 64  # maximum tokens of an answer that the model writes
    temperature: float = 0.0  # sampling temperature of the model; 0 is greedy decoding


GIVEN = Answers()
PLACEHOLDERS = ("x", "y")  # two answers that have no character in common


def plain_text(turns: Sequence[dict[str, Any]]) -> str:
    """Return a conversation as plain text, without a template.

    A turn of the user begins after an empty line, and other turns begin after a space. The contents
    are not changed, because spaces and line ends are part of code.
    """
    text = ""
    for position, turn in enumerate(turns):
        if position > 0:
            text += "\n\n" if turn["role"] == "user" else " "
        text += str(turn.get("content", ""))
    return text


def question(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return the text that the model reads before it answers.

    chat: whether to use the tokenizer's chat template instead of plain text.

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
    return text_ids(question(prompt, tokenizer, chat), tokenizer, chat)


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Tokenise a text for the model. chat: whether the text comes from the chat template."""
    # A chat template may already print BOS. In plain text, the tokenizer may add it.
    has_bos = chat and text.startswith(tokenizer.bos_token or "")
    ids: list[int] = tokenizer(text, add_special_tokens=not has_bos, verbose=False).input_ids
    return ids


def separated(prompt: Prompt, answer: str) -> str:
    """Return an answer from a file, with a space that separates it from its question in plain text.

    If the question ends with white space, or the answer begins with it, no space is added.
    """
    asked = plain_text(prompt.messages)
    if asked[-1:].isspace() or answer[:1].isspace():
        return answer
    return " " + answer


def rendered(prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return a document of question and answer.

    In plain text, question and answer are concatenated without a space, which `separated` adds.

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

    The span includes text that the template prints after the answer, such as the end of the turn.
    The span is empty if the template drops the whole answer, as some templates do with thoughts.

    Raises:
        ValueError: the template refuses the conversation.
    """
    document = rendered(prompt, answer, tokenizer, chat)
    if not chat:
        return document, (len(plain_text(prompt.messages)), len(document))

    # Render two different answers. The answer is at the position where both documents differ.
    other, another = (rendered(prompt, text, tokenizer, chat) for text in PLACEHOLDERS)
    before = _common_start(other, another)
    after = _common_start(other[::-1], another[::-1])[::-1]
    if document == before + after:
        return document, (len(document), len(document))

    # The answer may begin earlier, because a template may print thoughts first.
    start = len(_common_start(document, before))
    # If the model's input does not end with the space before the answer, the space belongs to the
    # answer.
    given = question(prompt, tokenizer, chat)
    if document[:start].endswith(" ") and not given.endswith(" "):
        start -= 1
    return document, (start, len(document))


def _common_start(first: str, second: str) -> str:
    """Return the number of characters that two texts share at the beginning."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:position]
    return min(first, second, key=len)


def _templated(
    messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> str:
    """Render a conversation with the chat template, without thoughts, as in evaluation."""
    try:
        text = tokenizer.apply_chat_template(
            [*messages], tokenize=False, enable_thinking=False, **options
        )
    except Exception as error:  # templates are programs, which may raise errors of any type
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation ({one_line(error, 120)})"
        ) from error
    return str(text)


class Asked(NamedTuple):
    """The prompts of a text, and how they are answered."""

    prompts: tuple[Prompt, ...]
    name: str
    origin: str
    chat: bool  # whether prompts are rendered with the chat template
    answers: Answers

    @property
    def key(self) -> list[object]:
        """The part of the cache key for everything that answers depend on, except the model."""
        prompts = [[list(prompt.messages), prompt.answer] for prompt in self.prompts]
        return [
            self.name,
            digest(prompts),
            self.chat,
            self.answers.writer,
            self.answers.max_new_tokens,
            self.answers.temperature,
        ]


def dialogues(
    asked: Asked,
    answers: Sequence[tuple[Prompt, str]],
    tokenizer: PreTrainedTokenizerBase,
    bos: bool,
) -> Text:
    """Return prompts and answers as a text in which each conversation is a document.

    bos: whether windows begin with BOS. If so, a BOS that the template prints is removed from the
        beginning of each document.
    """
    documents = list[str]()
    spans = list[Span]()
    for prompt, answer in answers:
        document, (start, end) = answered(prompt, answer, tokenizer, asked.chat)
        removed = 0
        if bos and document.startswith(str(tokenizer.bos_token)):
            removed = len(str(tokenizer.bos_token))
        documents.append(document[removed:])
        spans.append((start - removed, end - removed))
    return Text.joined(asked.name, documents, asked.origin, counted=spans)
