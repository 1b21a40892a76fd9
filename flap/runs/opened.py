"""A model that is opened by the first stage that needs it."""

from collections.abc import Callable

from flap.models import PlacedModel


class Opened:
    """A model that is opened when a stage first needs it, and then kept until it is closed."""

    def __init__(self, open_model: Callable[[], PlacedModel]) -> None:
        self._open_model = open_model
        self._model: PlacedModel | None = None

    def __call__(self) -> PlacedModel:
        """Return the model."""
        if self._model is None:
            self._model = self._open_model()
        return self._model

    def close(self) -> None:
        """Let go of the model. The next call opens it again."""
        self._model = None
