"""A document of a task counts as read if 13 of its words occur in a row in a text of the run.

The evaluation leaves out documents that count as read. A document of fewer than 13 words counts as
read only if its words are the whole text, or a whole line of the text without the line's label
(such as "Question: ").
"""

import pytest

from flap.data import Prompt
from flap.data.overlap import (
    Document,
    ReadText,
    Words,
    as_written,
    document_of,
    letters_and_digits,
    line_runs,
    overlaps,
    turns,
    word_runs,
)

PASSAGE = "bees make honey from the nectar of two million flowers every year in a single hive"
OTHER = "iron rusts when it meets both oxygen and water unless paint keeps these two away from it"


def read(*texts: str, source: str = "calibration.dataset=my.jsonl") -> ReadText:
    return ReadText("calibration", source, texts)


def of(documents: list[Document], *texts: ReadText, words: Words = letters_and_digits) -> set[int]:
    """Return the indices of the documents that count as read if a run reads `texts`."""
    [found] = overlaps([documents], texts, words)
    assert found.total == len(documents)
    return set(found.documents)


def asked(passage: str, question: str) -> Document:
    return document_of(passage, [question], letters_and_digits)


def test_two_texts_share_thirteen_words_in_a_row() -> None:
    words = PASSAGE.split()
    thirteen = " ".join(words[2:15])
    twelve = " ".join(words[2:14])
    assert not word_runs(PASSAGE).isdisjoint(word_runs(f"before {thirteen} behind"))
    assert word_runs(PASSAGE).isdisjoint(word_runs(f"before {twelve} behind"))
    assert len(word_runs(PASSAGE)) == len(words) - 12


def test_a_shorter_text_is_compared_as_a_whole() -> None:
    assert word_runs("who wrote it") == word_runs(" who  wrote it\n") != word_runs("who wrote")
    assert word_runs("who wrote it").isdisjoint(word_runs("tell me who wrote it"))
    assert word_runs("") == set()


def test_a_line_is_compared_without_its_label() -> None:
    prompt = f"{PASSAGE}\nQuestion: What do bees make?\nAnswer: yes"
    assert line_runs(prompt, letters_and_digits) == word_runs(
        "what do bees make", letters_and_digits
    )


def test_all_questions_about_a_passage_that_was_read_are_left_out() -> None:
    documents = [
        asked(PASSAGE, "what do bees make"),
        asked(PASSAGE, "how many flowers are there"),
        asked(OTHER, "when does iron rust"),
    ]
    assert of(documents, read(f"{PASSAGE}.\nQuestion: Is it sweet?\nAnswer:")) == {0, 1}
    assert of(documents, read("nothing of them")) == set()
    assert of(documents, read(OTHER), read(PASSAGE)) == {0, 1, 2}


def test_case_and_punctuation_count_only_as_written() -> None:
    changed = PASSAGE.replace(" two", ", two").capitalize()
    as_is = [document_of(PASSAGE, (), as_written)]
    assert of(as_is, read(changed), words=as_written) == set()
    assert of(as_is, read(PASSAGE), words=as_written) == {0}
    assert of([document_of(PASSAGE, (), letters_and_digits)], read(changed)) == {0}


def test_a_short_question_tells_a_document_only_if_no_other_one_asks_it() -> None:
    documents = [
        asked(PASSAGE, "when does iron rust"),
        asked("Tracy went home.", "how would you describe Tracy"),
        asked("Tracy met Riley.", "how would you describe Tracy"),
    ]
    assert of(documents, read("Question: When does iron rust?")) == {0}
    assert of(documents, read("Tracy ran.\nQuestion: How would you describe Tracy?")) == set()
    assert of(documents, read("Tracy met Riley.\nQuestion: Who is Riley?")) == {2}


def test_short_answers_tell_nothing() -> None:
    prompt = Prompt(({"role": "user", "content": "is honey sweet"},), "yes")
    assert turns(prompt) == ["is honey sweet"]
    documents = [document_of("is iron hard", ["yes"], letters_and_digits)]
    assert of(documents, read("yes", "no\nyes\n")) == set()


def test_a_prompt_is_known_by_its_turns_and_its_long_answers_but_not_by_the_system() -> None:
    messages = (
        {"role": "system", "content": f"you are kind and {OTHER}"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "short"},
        {"role": "user", "content": "last"},
    )
    assert turns(Prompt(messages, PASSAGE)) == ["last", "first", PASSAGE]


@pytest.mark.parametrize(("count", "expected"), [(40, {0}), (4, {0, 1, 2, 3})])
def test_instructions_that_most_documents_have_are_not_compared(
    count: int, expected: set[int]
) -> None:
    """Instructions that most documents of a task share do not make these documents count as read.

    In a task of few documents, flap does not recognise shared instructions. There, all documents
    with these instructions count as read.
    """
    instructions = f"answer in one word and remember that {OTHER}"
    documents = [
        document_of(f"{instructions} number{n} is what", (), letters_and_digits)
        for n in range(count)
    ]
    assert of(documents, read(f"{instructions} number0 is what")) == expected


def test_several_tasks_are_searched_at_once_and_the_texts_are_named() -> None:
    first = read(PASSAGE, source="calibration.dataset=a.txt")
    second = read(OTHER, source="recover.dataset=b.txt")
    tasks = [[asked(PASSAGE, "")], [asked(OTHER, ""), asked(f"new {OTHER}", "")], []]
    one, other, none = overlaps(tasks, [first, second], letters_and_digits)
    assert (one.documents, one.read) == ({0}, (first,))
    assert (other.documents, other.read) == ({0, 1}, (second,))
    assert (none.documents, none.total, none.read) == (set(), 0, ())
