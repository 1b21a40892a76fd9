"""Read and check the texts of a run, and cut them into token windows.

A run may need texts for calibration, for training after compression (recovery), and for choosing
the tokens that stay in a trimmed vocabulary. Instead of reading a text, flap may let the model
generate the text. If a text consists of prompts, the model may generate the answers to these
prompts.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from transformers import PreTrainedTokenizerBase

from flap.config import CalibrationConfig, require
from flap.data import SELF, Windows, parse
from flap.data.dialogue import GIVEN, Answers
from flap.data.overlap import ReadText
from flap.data.read_windows import Wanted, check_prompts, read_parts, read_windows
from flap.evaluation import Task
from flap.models import ModelSource
from flap.runs.choices import Choices

# Characters that Microsoft Windows, or a Windows file server, does not allow in file names.
REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
# Maximum number of bytes in a file name. File systems allow 255 bytes, but an atomic write needs a
# temporary file with a longer name.
LONGEST_FILE = 240


class Needed(NamedTuple):
    """A text, or a mixture of texts, from which a run takes windows."""

    section: str  # the config section that names the text, such as "calibration"
    dataset: Any  # the option `dataset` of this section
    # the number of windows, their length, and other options for cutting texts into windows
    wanted: Wanted


def read_texts(choices: Choices, source: ModelSource) -> dict[str, Windows]:
    """Read the texts that a run needs, and return their token windows.

    The keys are the uses of the texts: "calibration", "recovery" and "vocabulary".

    Raises:
        ValueError: a text does not exist or is too short; the windows or prompts of a text do not
            fit into the model's context; or `recover.writer` is not "dense", although the training
            text has no prompts that the model must answer.
    """
    texts = {}
    for use, (section, dataset, wanted) in _needed(choices).items():
        texts[use] = read_windows(section, dataset, source.tokenizer, wanted, source.max_length)

    vocabulary = choices.vocabulary
    if vocabulary is not None and (vocabulary.dataset or not choices.need_windows):
        texts["vocabulary"] = _counted_text(choices, vocabulary.dataset, source.tokenizer)

    recovery = choices.recovery
    if recovery is not None and recovery.writer != "dense":
        allowed = (
            "dense, as no prompts are answered; take calibration.answers=self and a text with "
            "prompts"
        )
        require(bool(texts[recovery.use].asked), "recover.writer", recovery.writer, allowed)
    return texts


def counted_in(texts: Mapping[str, Windows]) -> Windows:
    """Return the windows of the texts in which vocabulary=trim counts tokens.

    These are the texts that the option `vocabulary.dataset` names, or the calibration texts if this
    option is not set.
    """
    return texts["vocabulary"] if "vocabulary" in texts else texts["calibration"]


def check_prompts_fit(choices: Choices, source: ModelSource) -> None:
    """Check for a dry run that the prompts that the model must answer fit into its context.

    Texts without prompts are not read. If the model has no tokenizer, nothing is checked.

    Raises:
        ValueError: prompts cannot be read, or all prompts of a text are so long that the context
            has no space for an answer.
    """
    if answers_of(choices.calibration).writer != "self":
        return
    try:
        tokenizer = source.tokenizer
    except ValueError:  # a dry run also works without a tokenizer, from the model's config alone
        return
    for section, dataset, wanted in _needed(choices).values():
        check_prompts(section, dataset, tokenizer, wanted, source.max_length)


def _needed(choices: Choices) -> dict[str, Needed]:
    """Return the texts from which the run takes windows.

    The keys are the uses of the texts, "calibration" and "recovery".
    """
    own = choices.calibration
    answers = answers_of(own)
    needed = {}
    if choices.need_windows:
        wanted = Wanted(own.num_samples, own.seq_len, choices.seed, own.bos, answers)
        needed["calibration"] = Needed("calibration", own.dataset, wanted)

    recovery = choices.recovery
    if recovery is not None and recovery.use == "recovery":
        num_windows = recovery.windows + recovery.held_out
        wanted = Wanted(num_windows, recovery.seq_len, choices.seed, own.bos, answers)
        needed["recovery"] = Needed("recover", recovery.dataset, wanted)
    return needed


def _counted_text(choices: Choices, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Read the text in which `vocabulary=trim` counts tokens, without taking windows from it.

    dataset: the option `vocabulary.dataset`; None stands for the calibration text.
    """
    own = choices.calibration
    section = "vocabulary"
    answers = GIVEN
    if not dataset:
        section = "calibration"
        dataset = own.dataset
        answers = answers_of(own)
    wanted = Wanted(1, 2, choices.seed, own.bos, answers)
    counted = read_parts(section, parse(dataset, f"{section}.dataset"), tokenizer, wanted)
    allowed = "texts or files; text of the model itself is counted only as a calibration text"
    require(not counted.to_write, f"{section}.dataset", dataset, allowed)
    return counted


def answers_of(own: CalibrationConfig) -> Answers:
    """Return the calibration options for prompts, such as whether the model answers them.

    Raises:
        ValueError: an option is out of range.
    """
    tokens = own.max_new_tokens
    require(tokens >= 1, "calibration.max_new_tokens", tokens, "a whole number >= 1")
    valid = 0 <= own.temperature < math.inf
    require(valid, "calibration.temperature", own.temperature, "a number >= 0")
    return Answers(own.answers, own.count, tokens, own.temperature)


def documents_read(texts: Mapping[str, Windows]) -> list[ReadText]:
    """Return all documents from which windows may be taken, or in which tokens are counted."""
    read = list[ReadText]()
    for use, windows in texts.items():
        for dataset, documents in windows.read.items():
            read.append(ReadText(use, f"{windows.field}.dataset={dataset}", documents))
    return read


def without_effect(own: CalibrationConfig, texts: Mapping[str, Windows]) -> dict[str, str]:
    """Return the options that have no effect on the texts of the run, each with the reason.

    Only the options for answers to prompts are checked, and only if their values differ from the
    defaults. If the run needs no text, the result is empty, because the options may be meant for
    other runs of the same sweep.
    """
    if not texts or any(windows.asked for windows in texts.values()):
        return {}
    names = ["max_new_tokens", "temperature"]
    reason = "the files give the answers; with calibration.answers=self the model writes them"
    if not any(text.counted for windows in texts.values() for text in windows.existing):
        names += ["answers", "count"]
        reason = "no text of this run has prompts"
    default = CalibrationConfig()
    changed = [name for name in names if getattr(own, name) != getattr(default, name)]
    return {f"calibration.{name}": reason for name in changed}


def own_text_files(use: str, windows: Windows) -> dict[int, str]:
    """Return the names of the files in which a run saves its generated texts.

    The result is a dict. Its keys are the indices (in `windows.parts`) of the texts that the model
    generates, or in which it answers prompts.

    The names are valid and distinct on all file systems, including file systems that ignore case.
    If two names would be the same, the names of all texts with prompts also contain the number of
    the text, counted from 1.

    use: "calibration" or "recovery".
    """
    stems = {part: Path(windows.parts[part].dataset).stem for part in windows.asked}
    files = {part: _file_name(use, stem) for part, stem in stems.items()}
    distinct = {normalize("NFC", file).casefold() for file in files.values()}
    if len(distinct) < len(files):
        files = {part: _file_name(use, f"{part + 1}-{stem}") for part, stem in stems.items()}
    for number, part in enumerate(windows.parts):
        if part.dataset == SELF:
            files[number] = f"{SELF}_{use}.jsonl"
    return files


def _file_name(use: str, stem: str) -> str:
    """Return a file name for a text that the model generates.

    The name has at most `LONGEST_FILE` bytes, and none of the characters in `REFUSED`.

    stem: the part of the file name that identifies the text.
    """
    before = f"{SELF}_{use}_"
    after = ".jsonl"
    room = LONGEST_FILE - len(before) - len(after)
    safe = REFUSED.sub("_", stem).encode()[:room].decode(errors="ignore")
    return before + safe + after


def measured_again(texts: Mapping[str, Windows], tasks: Sequence[Task]) -> list[str]:
    """Return a warning for each evaluation task whose text the run also uses for another purpose.

    The other purposes are calibration, training, and counting tokens to trim the vocabulary.
    """
    warnings = []
    for task, (use, windows) in product(tasks, texts.items()):
        if task.text_sha256 in [text.sha256 for text in windows.named]:
            warnings.append(f"{task.name} is measured on the {use} text itself")
    return warnings


def domain_of_task(texts: Mapping[str, Windows], task: Task) -> str:
    """Return "calibration" if the task and a text of the run have the same domain, else "other".

    A text and a task have the same domain if they use the same data set or documents
    (`Task.is_of_domain`).
    """
    read = [text for windows in texts.values() for text in windows.named]
    return "calibration" if any(map(task.is_of_domain, read)) else "other"
