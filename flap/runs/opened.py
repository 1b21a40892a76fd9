"""Models that are opened only when a stage of a run first needs them."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from flap.evaluation import Measurement, Task
from flap.models import PlacedModel
from flap.storage import WorkFolder


class NoRoomError(RuntimeError):
    """Raised if an evaluation task needs more memory than is free; the run leaves this task out."""


class Opened:
    """A model that is opened when a stage first needs it, and stays open until it is closed."""

    def __init__(self, open_model: Callable[[], PlacedModel]) -> None:
        self._open_model = open_model
        self._model: PlacedModel | None = None

    def __call__(self) -> PlacedModel:
        """Return the model. If the model is not open, open it first."""
        if self._model is None:
            self._model = self._open_model()
        return self._model

    def close(self) -> None:
        """Free the memory of the model. The next call of this object opens the model again."""
        self._model = None


class Subject:
    """A model that evaluation tasks measure.

    The model is opened when a task first needs it. If the whole model fits into memory, it is
    loaded as a whole. Otherwise, it is read layer by layer, and tasks that need the whole model are
    left out.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @cached_property
    def whole(self) -> PlacedModel | None:
        """The model, loaded into memory as a whole; None if there is not enough free memory."""
        model = self._opened()
        return model.in_memory() if model.fits_in_memory() else None

    def for_task(self, task: Task) -> PlacedModel:
        """Return the model loaded into memory, or a model that is read layer by layer.

        The model is read layer by layer if the whole model does not fit into memory.

        Raises:
            NoRoomError: the task needs the whole model in memory, and the model does not fit.
        """
        if self.whole is None and task.needs_memory:
            raise NoRoomError(task.name)
        return self.whole or self._opened()

    def measure(self, task: Task, work: WorkFolder) -> Measurement:
        """Run a task on this model.

        work: the working directory, from which an interrupted task resumes.

        Raises:
            NoRoomError: the task needs the whole model in memory, and the model does not fit.
        """
        if task.continues:
            return task.run(self.for_task(task), work)
        return task.run(self.for_task(task))

    def compare(self, task: Task, references: Mapping[str, Any]) -> Measurement:
        """Run a task that compares this model with the dense model.

        references: a dict from the names of tasks to the results of `Task.reference` for the dense
            model.

        Raises:
            NoRoomError: the task needs a whole model in memory, and this model or the dense model
                does not fit.
        """
        if task.name not in references:  # the dense model did not fit into memory
            raise NoRoomError(task.name)
        return task.run(self.for_task(task), references[task.name])
