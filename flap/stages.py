"""The choices of a config as objects, and what they need of tokenizer, text and shapes; no weight is read for it.

Legend: N windows · T tokens a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flap.allocation import Budget, Scaled, Search, Structure, UniformLayers, price
from flap.calibration import STATISTICS_VERSION, Text, calibration_windows, read_text, tokens_sha256
from flap.compression import Compensation, NoCompensation
from flap.config import FlapConfig, build
from flap.evaluation import Evaluator
from flap.importance import Metric
from flap.models import ModelAdapter


@dataclass(frozen=True)
class Stages:
    """The choices of a config as objects."""

    metric: Metric
    structure: Structure
    compensation: Compensation
    evaluators: list[Evaluator]
    propagate: str = "dense"

    @property
    def need_statistics(self) -> bool:
        searches = isinstance(self.structure, Search)  # on calibration windows
        return searches or self.metric.needs_statistics or self.compensation.needs_statistics

    @property
    def keep_layers_alike(self) -> bool:
        """Whether all layers keep one width and gain no biases."""
        return isinstance(self.structure, UniformLayers) and isinstance(self.compensation, NoCompensation)

    @property
    def need_covariance(self) -> bool:
        return self.metric.needs_covariance or self.compensation.needs_covariance

    @property
    def prune_on_the_way(self) -> bool:
        """Whether each layer is scored on what pruned layers put out (Wanda-sp): where nothing stands in for units."""
        return self.propagate == "pruned" and isinstance(self.compensation, NoCompensation)

    @property
    def correct_behind_pruned(self) -> bool:
        """Whether a second pass, with the plan known, corrects each layer behind the pruned ones before it."""
        return self.propagate == "pruned" and not self.prune_on_the_way


@dataclass(frozen=True)
class Calibration:
    """The windows that the statistics are taken from, and their text."""

    tokens_NT: Tensor
    text: Text
    seed: int

    @property
    def key(self) -> dict[str, object]:
        """All that the statistics depend on, besides the model: not metric, structure, ratio or method."""
        num_samples, seq_len = self.tokens_NT.shape
        return {
            "version": STATISTICS_VERSION,
            "dataset": self.text.name,
            "num_samples": num_samples,
            "seq_len": seq_len,
            "seed": self.seed,
            "tokens": tokens_sha256(self.tokens_NT),
        }


def build_stages(config: FlapConfig) -> Stages:
    """Raises: ValueError: an option of a choice is out of range, or two choices do not go together."""
    torch.manual_seed(config.seed)
    stages = Stages(
        build("metric", config.metric),
        build("structure", config.structure),
        build("compensation", config.compensation),
        [build(f"eval.{name}", node) for name, node in (config.eval or {}).items()],
        config.calibration.propagate,
    )
    if stages.prune_on_the_way and not isinstance(stages.structure, UniformLayers):
        raise ValueError(
            "calibration.propagate=pruned: expected structure UL-UM or UL-MM with compensation=none, because an "
            "adaptive plan is known only after every layer has its statistics; or compensation=bias or linear, which "
            "go through the layers again"
        )
    if stages.correct_behind_pruned and config.model.placement != "device":
        raise ValueError(
            f"model.placement={config.model.placement}: expected device with calibration.propagate=pruned and "
            "a compensation, which run a layer's copy beside it"
        )
    if isinstance(stages.structure, Search) and config.model.placement != "device":
        raise ValueError(
            f"model.placement={config.model.placement}: expected device with structure=search, which runs the layers "
            "over and over"
        )
    if isinstance(stages.structure, Scaled) and stages.structure.ranks_errors:
        _check_errors(stages.metric, stages.structure.scale)
    if stages.need_covariance and config.model.placement == "stream":
        raise ValueError("model.placement=stream: expected a compensation and a metric without covariances, or auto")
    if (stages.need_covariance or stages.correct_behind_pruned) and config.calibration.num_samples < 2:
        raise ValueError(
            f"calibration.num_samples={config.calibration.num_samples}: expected at least 2, because what is fitted on "
            "some windows is judged on others"
        )
    return stages


def _check_errors(metric: Metric, scale: str) -> None:
    if not metric.measures_error:
        raise ValueError(
            f"structure.scale={scale}: expected metric=WIFV or metric=OBS, whose scores are output errors, or "
            "structure.scale=z-score"
        )
    if metric.square_attention:
        raise ValueError(
            f"metric.square_attention=true: squares of errors are no errors; set metric.square_attention=false with "
            f"structure.scale={scale}"
        )


def read_calibration(
    config: FlapConfig, stages: Stages, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Calibration | None:
    """The calibration windows, or None where neither metric nor compensation needs any."""
    if not stages.need_statistics:
        return None
    options = config.calibration
    if max_length is not None and options.seq_len > max_length:
        raise ValueError(f"calibration.seq_len={options.seq_len}: the model's context ends at {max_length} tokens")
    text = read_text(options.dataset, "calibration", "calibration.dataset")
    tokens_NT = calibration_windows(text, tokenizer, options.num_samples, options.seq_len, config.seed)
    return Calibration(tokens_NT, text, config.seed)


def check_budget(adapter: ModelAdapter, stages: Stages, config: FlapConfig) -> Budget:
    """The budget, counted from the tensors. Raises: ValueError: ratio or choices do not fit this model."""
    budget = price(adapter, config.ratio)
    stages.structure.check(budget)
    experts = any(layer.experts > 1 for layer in budget.layers)
    if stages.correct_behind_pruned and experts:
        raise ValueError(
            "calibration.propagate=pruned: experts are not corrected; expected dense, or compensation=none, for "
            f"'{adapter.model.config.model_type}'"
        )
    if stages.need_covariance and experts:
        raise ValueError(
            "compensation, metric: of experts no covariances are collected; expected choices without them for "
            f"'{adapter.model.config.model_type}', as compensation=bias"
        )
    return budget
