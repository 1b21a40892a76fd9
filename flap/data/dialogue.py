"""Format prompts and answers as text, with or without the tokenizer's chat template."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.data.text import Prompt, Span, Text
from flap.storage import digest


class Answers(NamedTuple):
    """Where answers to prompts come from, and over which tokens statistics are computed."""

    # "given": the answers come with the prompts; "self": the model generates the answers
    writer: str = "given"
    # "all": statistics are computed over all tokens; "answers": only over the tokens of answers
    counted: str = "all"
    max_new_tokens: int = 64  # maximum number of tokens in an answer that the model generates
    temperature: float = 0.0  # sampling temperature of the model; 0 means greedy decoding


GIVEN = Answers()
# Two answers that have no character in common. `answered` formats a prompt with each answer, to
# find the text that the chat template prints before and after an answer.
PLACEHOLDERS = ("x", "y")


def plain_text(turns: Sequence[dict[str, Any]]) -> str:
    """Return a conversation as plain text, without a chat template.

    An empty line separates a user's turn from the turn before it; a space separates any other turn
    from the turn before it. White space inside a turn is kept, because it matters in program code.
    """
    text = ""
    for position, turn in enumerate(turns):
        if position > 0:
            text += "\n\n" if turn["role"] == "user" else " "
        text += str(turn.get("content", ""))
    return text


def question(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return the text of a prompt, which the model reads before it answers.

    chat: whether the prompt is formatted with the tokenizer's chat template, or as plain text.

    Raises:
        ValueError: the chat template raises an error for this prompt.
    """
    if not chat:
        return plain_text(prompt.messages)
    return _templated(prompt.messages, tokenizer, add_generation_prompt=True)


def question_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Return the token ids of a prompt, which the model reads before it answers.

    Raises:
        ValueError: the chat template raises an error for this prompt.
    """
    return text_ids(question(prompt, tokenizer, chat), tokenizer, chat)


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> list[int]:
    """Return the token ids of a text. chat: whether a chat template has formatted the text."""
    # A chat template may already have put the BOS token in front of the text. The tokenizer must
    # then not add a second BOS token.
    has_bos = chat and text.startswith(tokenizer.bos_token or "")
    ids: list[int] = tokenizer(text, add_special_tokens=not has_bos, verbose=False).input_ids
    return ids


def separated(prompt: Prompt, answer: str) -> str:
    """Return an answer with a space in front, which separates prompt and answer in plain text.

    No space is added if the prompt ends with white space, or if the answer begins with white space.
    """
    asked = plain_text(prompt.messages)
    if asked[-1:].isspace() or answer[:1].isspace():
        return answer
    return " " + answer


def rendered(prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase, chat: bool) -> str:
    """Return a prompt and its answer as one document.

    chat: whether the chat template is used. If false, nothing is inserted between prompt and
        answer, so the answer must already begin with any space that is needed (`separated`).

    Raises:
        ValueError: the chat template raises an error for this prompt and answer.
    """
    if not chat:
        return plain_text(prompt.messages) + answer
    return _templated([*prompt.messages, {"role": "assistant", "content": answer}], tokenizer)


def answered(
    prompt: Prompt, answer: str, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> tuple[str, Span]:
    """Return a prompt and its answer as one document, and the span of the answer in this document.

    The span includes text that the chat template prints after the answer, such as the token that
    ends a turn. The span is empty if the template drops the whole answer. Some templates do so if
    an answer contains only thoughts, which are the model's reasoning before the actual answer.

    Raises:
        ValueError: the chat template raises an error for this prompt and answer.
    """
    document = rendered(prompt, answer, tokenizer, chat)
    if not chat:
        return document, (len(plain_text(prompt.messages)), len(document))

    # Render the prompt with two placeholder answers. The beginning that these two documents share
    # is what the template prints before an answer, and the end that they share is what it prints
    # after an answer.
    other, another = (rendered(prompt, text, tokenizer, chat) for text in PLACEHOLDERS)
    before = _common_prefix(other, another)
    after = _common_prefix(other[::-1], another[::-1])[::-1]
    if document == before + after:
        return document, (len(document), len(document))

    # The span begins where the document first differs from `before`. If the template prints the
    # model's thoughts in front of the answer, the span thus begins with the thoughts.
    start = len(_common_prefix(document, before))
    # If the prompt that the model reads (`given`) does not end with a space, but the document has a
    # space before the answer, this space belongs to the answer.
    given = question(prompt, tokenizer, chat)
    if document[:start].endswith(" ") and not given.endswith(" "):
        start -= 1
    return document, (start, len(document))


def _common_prefix(first: str, second: str) -> str:
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return first[:position]
    return min(first, second, key=len)


def _templated(
    messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: bool
) -> str:
    """Format a conversation with the chat template. Reasoning before answers is switched off."""
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
    """The prompts of one text, and the options for the answers to these prompts."""

    prompts: tuple[Prompt, ...]
    name: str
    origin: str
    chat: bool  # whether prompts are formatted with the chat template
    answers: Answers

    @property
    def key(self) -> list[object]:
        """Everything that the answers depend on, except the model, as entries of a cache key."""
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
    """Return a text that has one document for each pair of a prompt and its answer.

    asked: the name and the origin of the text, and whether to use the chat template.
    answers: pairs of a prompt and its answer.
    bos: whether each token window that is later cut from the text gets a BOS token in front. If so,
        a BOS that the chat template prints at the beginning of a document is removed.
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
