"""What an evaluator is: a list of named tasks, made before the model is loaded, so that bad input shows up early."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flap.calibration import Text

Numbers = dict[str, float]


@dataclass(frozen=True)
class Task:
    """One measurement; `run` gives named numbers such as {"wikitext2/perplexity@2048": 5.68}."""

    name: str
    run: Callable[[Any], Numbers]  # of a PreTrainedModel, or where it `streams`, of a StreamedModel too
    identity: Mapping[str, Any] = field(default_factory=dict)  # all that the numbers depend on, besides the model
    origin: str = ""  # where its data came from: goes into the report
    text_sha256: str | None = None  # of the text it scores, to notice that the model was calibrated on it
    streams: bool = False
    shares_text_with: tuple[str, ...] = ()  # calibration texts that are made of the same documents
    dataset: str = ""  # the name of the text it scores

    def domain(self, calibration: Text) -> str:
        """ "calibration": of the same data set, maybe another part of it, or of the same documents. Else "other"."""
        same = (self.dataset, self.origin) == (calibration.name, calibration.origin)  # files may share a name alone
        alike = same or self.text_sha256 == calibration.sha256 or calibration.name in self.shares_text_with
        return "calibration" if alike else "other"


@dataclass(frozen=True)
class Comparison:
    """A measurement of two models side by side, because what is timed at different times cannot be compared."""

    name: str
    run: Callable[[PreTrainedModel, PreTrainedModel], tuple[Numbers, Numbers]]  # (dense, pruned)
    identity: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(ABC):
    """A choice of the `eval` group."""

    @abstractmethod
    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[Task]:
        """All measurements, with their data read and checked. Raises: ValueError: as its options say."""

    def comparisons(self, max_length: int | None) -> list[Comparison]:
        """Measurements that need both models at once; none unless an evaluator says so."""
        return []

    def summary(self, numbers: Mapping[str, float]) -> Numbers:
        """Numbers made of the numbers of several tasks, such as an average; none unless an evaluator says so."""
        return {}
