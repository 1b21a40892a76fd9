"""The windows of calibration and recovery, and how their texts relate to those of the tasks."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

from transformers import PreTrainedTokenizerBase

from flap.config import CalibrationConfig, FlapConfig, require
from flap.data import Windows, parse
from flap.data.dialogue import GIVEN, Answers
from flap.data.overlap import ReadText
from flap.data.read_windows import Wanted, check_prompts, read_parts, read_windows
from flap.evaluation import Task
from flap.method.recovery import Recovery
from flap.models import ModelSource
from flap.runs.choices import Choices


def read_texts(
    config: FlapConfig, choices: Choices, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, Windows]:
    """Return the windows of calibration and of recovery, as far as a choice needs them.

    Raises:
        ValueError: there is no such text, it is too short, or windows or prompts do not fit into
            the model's context.
    """
    texts = {}
    own = config.calibration
    recovery = choices.recovery
    if choices.need_windows:
        texts["calibration"] = read_windows(
            "calibration", own.dataset, tokenizer, _calibration_windows(config), max_length
        )
    if choices.vocabulary is not None and (choices.vocabulary.dataset or not choices.need_windows):
        section = "vocabulary" if choices.vocabulary.dataset else "calibration"
        dataset = choices.vocabulary.dataset or own.dataset
        parts = parse(dataset, f"{section}.dataset")
        answers = answers_of(own) if section == "calibration" else GIVEN
        wanted = Wanted(1, 2, config.seed, own.bos, answers)
        counted = read_parts(section, parts, tokenizer, wanted)  # no window is drawn
        allowed = (
            "texts or files; what the model writes is counted where calibration windows are read "
            "that have it"
        )
        require(not counted.to_write, f"{section}.dataset", dataset, allowed)
        texts["vocabulary"] = counted
    if recovery is not None:
        if recovery.use == "recovery":
            texts["recovery"] = read_windows(
                "recover",
                recovery.dataset,
                tokenizer,
                _recovery_windows(config, recovery),
                max_length,
            )
        allowed = (
            "dense, as no prompts are answered; take calibration.answers=self and a text with "
            "prompts"
        )
        answered = recovery.writer == "dense" or bool(texts[recovery.use].asked)
        require(answered, "recover.writer", recovery.writer, allowed)
    return texts


def check_prompts_fit(config: FlapConfig, choices: Choices, source: ModelSource) -> None:
    """Check that prompts which the model is to answer fit into its context, for a dry run.

    No text without prompts is read. If the model has no tokenizer yet, nothing is checked.

    Raises:
        ValueError: prompts cannot be read, or no prompt of a text leaves room for an answer.
    """
    if answers_of(config.calibration).writer != "self":
        return
    try:
        tokenizer = source.tokenizer
    except ValueError:  # a dry run needs only the model's config
        return
    if choices.need_windows:
        wanted = _calibration_windows(config)
        dataset = config.calibration.dataset
        check_prompts("calibration", dataset, tokenizer, wanted, source.max_length)
    recovery = choices.recovery
    if recovery is not None and recovery.use == "recovery":
        wanted = _recovery_windows(config, recovery)
        check_prompts("recover", recovery.dataset, tokenizer, wanted, source.max_length)


def _calibration_windows(config: FlapConfig) -> Wanted:
    own = config.calibration
    return Wanted(own.num_samples, own.seq_len, config.seed, own.bos, answers_of(own))


def _recovery_windows(config: FlapConfig, recovery: Recovery) -> Wanted:
    own = config.calibration
    num_windows = recovery.windows + recovery.held_out
    return Wanted(num_windows, recovery.seq_len, config.seed, own.bos, answers_of(own))


def answers_of(own: CalibrationConfig) -> Answers:
    """Return who answers prompts, and what counts.

    Raises:
        ValueError: an option is out of range.
    """
    require(
        own.max_new_tokens >= 1,
        "calibration.max_new_tokens",
        own.max_new_tokens,
        "a whole number >= 1",
    )
    require(
        0 <= own.temperature < math.inf, "calibration.temperature", own.temperature, "a number >= 0"
    )
    return Answers(own.answers, own.count, own.max_new_tokens, own.temperature)


def documents_read(texts: Mapping[str, Windows]) -> list[ReadText]:
    """Return all that calibration, vocabulary counting and recovery may read, whatever the seed and the windows."""
    read = list[ReadText]()
    for use, windows in texts.items():
        for dataset, documents in windows.read.items():
            read.append(ReadText(use, f"{windows.field}.dataset={dataset}", documents))
    return read


def measured_again(texts: Mapping[str, Windows], tasks: Sequence[Task]) -> list[str]:
    """Return warnings about tasks that are measured on a text of calibration or recovery itself."""
    warnings = []
    for task, (use, windows) in product(tasks, texts.items()):
        for text in windows.named:
            if task.text_sha256 == text.sha256:
                warnings.append(f"{task.name} is measured on the {use} text itself")
    return list(dict.fromkeys(warnings))


def domain_of_task(texts: Mapping[str, Windows], task: Task) -> str:
    """Return whether a task's domain is that of a text of calibration or recovery: "calibration" or "other".

    Empty if no text was read. Text that the model has still to write has no domain.
    """
    if not texts:
        return ""
    read = [text for windows in texts.values() for text in windows.named]
    return "calibration" if any(map(task.is_of_domain, read)) else "other"
