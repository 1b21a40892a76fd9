"""The choices of a config as objects, which of them can be combined, and the budget that they have to fit."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import uuid4

from flap.checkpoint.stock import takes_output_biases
from flap.config import FlapConfig, build, require, targets
from flap.evaluation import Evaluator
from flap.method.allocation import Biases, Budget, Given, Structure, bounds_of_shapes, price
from flap.method.compression import Compensation
from flap.method.importance import Metric
from flap.method.importance.channels import NoMetric
from flap.method.recovery import Reconstruction, Recovery
from flap.method.vocabulary import Trim
from flap.models import ModelAdapter, ModelSource
from flap.storage import digest


@dataclass(frozen=True)
class Choices:
    """The choices of a config (metric, structure, compensation, evaluators) as objects."""

    metric: Metric
    structure: Structure
    compensation: Compensation
    evaluators: Sequence[Evaluator]
    propagate: str  # whose outputs each layer is calibrated on: "dense" or "pruned" layers
    recovery: Recovery | None = None  # training after compression
    vocabulary: Trim | None = None  # which tokens stay; None: all

    @cached_property
    def code(self) -> dict[str, str]:
        """A digest of the files of metric, structure and compensation; empty if all are of this package.

        Their base classes count; what their files import does not. Read once, when a run begins. A class without a
        file, as in a notebook, equals none of another run.
        """
        chosen = type(self.metric), type(self.structure), type(self.compensation)
        modules = {base.__module__ for cls in chosen for base in cls.__mro__}
        own = sorted(
            name
            for name in modules
            if name.partition(".")[0] not in ("flap", "builtins", "abc", "typing")
        )
        return {"code": digest(list(map(_source, own)))} if own else {}

    @property
    def in_sequence(self) -> bool:
        """Whether pruning is sequential: each layer is pruned before the next one is calibrated (Wanda-sp)."""
        return self.propagate == "pruned" and self.need_windows

    @property
    def need_windows(self) -> bool:
        """Whether a choice needs calibration windows."""
        trained = self.recovery is not None and self.recovery.use == "calibration"
        needed = self.metric.needs_statistics or self.compensation.needs_statistics
        return trained or self.structure.measures or needed

    @property
    def need_covariance(self) -> bool:
        """Whether a choice needs statistics with covariances."""
        return self.metric.needs_covariance or self.compensation.needs_covariance

    @property
    def read_plain_statistics(self) -> bool:
        """Whether a choice needs statistics of the dense model without covariances."""
        plain = (
            one.needs_statistics and not one.needs_covariance
            for one in (self.metric, self.compensation)
        )
        return not self.in_sequence and any(plain)


def choose(config: FlapConfig) -> Choices:
    """Return the choices of a config as objects.

    Raises:
        ValueError: an option of a choice is out of range, or two choices cannot be combined.
    """
    recovery = build("recover", config.recover) if config.recover else None
    if isinstance(recovery, Reconstruction):
        recovery = recovery.on(config.calibration.num_samples, config.calibration.seq_len)
    choices = Choices(
        build("metric", config.metric) if config.plan is None else NoMetric(),
        build("structure", config.structure) if config.plan is None else Given.read(config.plan),
        build("compensation", config.compensation),
        [build(f"eval.{name}", node) for name, node in (config.eval or {}).items()],
        config.calibration.propagate,
        recovery,
        build("vocabulary", config.vocabulary) if config.vocabulary else None,
    )
    for valid, field, value, allowed in _rules(choices, config):
        require(valid, field, value, allowed)
    return choices


def _rules(choices: Choices, config: FlapConfig) -> Iterator[tuple[bool, str, Any, str]]:
    """Yield what choices ask of each other: whether it is given; field, value and expected value if it is not."""
    metric = choices.metric
    structure = choices.structure
    masked = config.mask_only
    training = f"false with recover={getattr(choices.recovery, 'name', '')}, which would train the masked units, too"
    yield not (masked and choices.recovery), "mask_only", True, training
    yield (
        not (masked and choices.vocabulary),
        "mask_only",
        True,
        "false with vocabulary=trim, whose rows are removed",
    )
    writer = getattr(choices.recovery, "writer", "dense")
    words = "dense with vocabulary=trim, whose tokens the prompts are not read in"
    yield not choices.vocabulary or writer == "dense", "recover.writer", writer, words
    router = "false with structure.experts=true, as a router cannot be masked"
    yield not (masked and structure.experts), "mask_only", True, router
    counted = [f"target.{name}" for name in targets(config.target) if name != "kv_cache_bytes"]
    rows = f"none with {' and '.join(counted)}, which counts all rows; prune the trimmed checkpoint in a second run"
    yield not (choices.vocabulary and counted), "vocabulary", "trim", rows
    known = "structure=UL-UM or UL-MM, because an adaptive plan is known only after every layer has its statistics"
    known = known if config.plan is None else "dense with plan"
    yield (
        choices.propagate == "dense" or structure.layer_by_layer,
        "calibration.propagate",
        choices.propagate,
        known,
    )
    scale = getattr(structure, "scale", "")
    errors = "metric=WIFV or metric=OBS, whose scores are output errors, or structure.scale=z-score"
    yield metric.measures_error or not structure.ranks_errors, "structure.scale", scale, errors
    squares = f"false with structure.scale={scale}: squared scores are not output errors"
    yield (
        not (structure.ranks_errors and metric.square_attention),
        "metric.square_attention",
        True,
        squares,
    )
    whole = "true with a metric that scores the whole experts of a mixture; WIFV and others score neurons"
    yield structure.experts or not metric.scores_experts, "structure.experts", False, whole
    samples = config.calibration.num_samples
    judged = "at least 2, as what is fitted on some is judged on others"
    yield samples >= 2 or not choices.need_covariance, "calibration.num_samples", samples, judged


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return uuid4().hex


def check_budget(
    adapter: ModelAdapter, choices: Choices, config: FlapConfig, model: ModelSource
) -> Budget:
    """Return the budget, counted from the tensors.

    Raises:
        ValueError: the ratio, a target or a choice does not fit this model.
    """
    why = "for this model, whose layers read the tokens' own embeddings and keys of earlier layers"
    search = not (choices.structure.measures and adapter.reads_tokens)
    require(search, "structure", "search", f"another structure {why}")
    allowed = f"device or auto {why}"
    require(
        not (model.placed.streams and adapter.reads_tokens),
        "model.placement",
        model.placement,
        allowed,
    )
    budget = price(adapter, config.ratio or 0)
    if targets(config.target):
        adds = choices.compensation.adds_bias
        biases = Biases(
            adds, adds and choices.structure.layer_by_layer and takes_output_biases(adapter)
        )
        for name in {"bytes", "memory"} & targets(config.target).keys() if model.loaded else ():
            _check_types(adapter, name, getattr(config.target, name))
        itemsize = model.dtype.itemsize
        context = model.max_length
        bounds = bounds_of_shapes(config.target, adapter, budget.layers, itemsize, biases, context)
        budget = budget.within(bounds)
    choices.structure.check(budget)
    if isinstance(choices.structure, Given):
        return replace(budget, ratio=1 - budget.kept(choices.structure.plan) / budget.total)
    return budget


def _check_types(adapter: ModelAdapter, name: str, asked: float) -> None:
    """Check that the weights have one type, but for the small ones that transformers always keeps in float32."""
    model = adapter.model
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    others = [
        one.dtype
        for name, one in model.named_parameters()
        if not any(part in name for part in kept)
    ]
    types = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in others}))
    allowed = (
        f"target.parameters instead, as the weights of this model have several types ({types})"
    )
    require("," not in types, f"target.{name}", asked, allowed)
