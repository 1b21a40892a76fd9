"""Prompts and their answers as a text, with or without the tokenizer's chat template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.data.text import Prompt, Span, Text
from flap.storage import digest


class Answers(NamedTuple):
    """Where the answers to prompts come from, and which tokens enter the statistics."""

    writer: str = "given"  # "given": the answers are in the file; "self": the model writes them
    # "all": all tokens enter the statistics; "answers": only tokens of answers do
    counted: str = "all"
    max_new_tokens: int = 64  # longest answer that the model writes
    temperature: float = 0.0  # sampling temperature of the model; 0 is greedy decoding


GIVEN = Answers()
PLACEHOLDERS = ("x", "y")  # two answers that have no character in common


def plain_text(turns: Sequence[dict[str, Any]]) -> str:
    """Return a conversation as plain text, without a template.

    The turns of the user begin after an empty line, other turns after a space. The contents stay as
    they are, because spaces and line ends are part of code.
    """
    text = ""
    for position, turn in enumerate(turns):
        if position > 0:
            text += "\n\n" if turn["role"] == "user" else " "
        text += str(turn.get("content", ""))
    return text


def question(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return the text that the model reads before it answers.

    chat: render the conversation with the tokenizer's chat template, else as plain text.

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
    """Return the tokens of a text that the model reads. chat: it went through the chat template."""
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

    # Render two other answers. The template prints the answer where these texts differ.
    other, another = (rendered(prompt, text, tokenizer, chat) for text in PLACEHOLDERS)
    before = _common_start(other, another)
    after = _common_start(other[::-1], another[::-1])[::-1]
    if document == before + after:
        return document, (len(document), len(document))

    # A template may print thoughts, which are part of the answer, at an earlier position.
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
    """Render a conversation with the chat template, without thoughts, as in evaluation."""
    try:
        text = tokenizer.apply_chat_template(
            [*messages], tokenize=False, enable_thinking=False, **options
        )
    except Exception as error:  # templates are programs, which raise errors of any type
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation ({one_line(error, 120)})"
        ) from error
    return str(text)


class Asked(NamedTuple):
    """The prompts of a text, and how they are answered."""

    prompts: tuple[Prompt, ...]
    name: str
    origin: str
    chat: bool  # whether they are rendered with the chat template
    answers: Answers

    @property
    def key(self) -> list[object]:
        """Everything that the rendered prompts and their answers depend on besides the model."""
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
    """Return prompts with their answers as a text in which each conversation is a document.

    bos: the windows begin with BOS, so a BOS that the template prints is removed from the front of
        each document.
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
