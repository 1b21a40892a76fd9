"""Instantiate the choices of a config, check that they can be combined, and compute the budget.

A choice is the chosen option of a config group, such as WIFV for the group `metric`. The budget is
the number of parameters to remove, which follows from the ratio or from targets (upper limits on
sizes of the pruned model, such as its bytes). A unit is a KV head with its query heads, an MLP
neuron or an expert. A plan lists the units that stay. A search (structure=search) makes trial
prunings before it selects these units. A compensation changes output projections to make up for the
removed units.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

from flap.checkpoint.stock import takes_output_biases
from flap.config import (
    CalibrationConfig,
    FlapConfig,
    TargetConfig,
    build,
    require,
    targets,
)
from flap.evaluation import Divergence, Evaluator
from flap.method.allocation import (
    Biases,
    Bound,
    Budget,
    GivenPlan,
    Structure,
    bounds_of_shapes,
    price,
)
from flap.method.compression import Compensation
from flap.method.importance import Metric
from flap.method.recovery import Reconstruction, Recovery
from flap.method.search import Search
from flap.method.vocabulary import Trim
from flap.models import ModelAdapter, ModelSource
from flap.storage import digest

# Packages whose classes are not user code. `Choices.code` leaves out the files of these classes.
OF_FLAP = ("flap", "builtins", "abc", "typing")


class Selection(NamedTuple):
    """The metric, which scores units, and the structure, which selects units by their scores."""

    metric: Metric
    structure: Structure


@dataclass(frozen=True)
class Choices:
    """The choices of a config.

    For most config groups, a field holds an instance of the chosen class. The fields `calibration`
    and `target` hold the dataclasses of the config sections with these names.
    """

    # the metric and the structure; None if the option `plan` names a plan
    selection: Selection | None
    # the plan that the option `plan` names; None if the units are selected by their scores
    given: GivenPlan | None
    compensation: Compensation
    evaluators: Mapping[str, Evaluator]  # the keys are the names in the config section `eval`
    calibration: CalibrationConfig
    seed: int
    # the share of the prunable parameters to remove; 0 if the config has a target or a plan
    ratio: float
    target: TargetConfig
    # If true, the weights of removed units are set to zero. If false, the rows and columns of
    # removed units are cut out of the matrices.
    mask_only: bool
    recovery: Recovery | None = None  # the training after compression; None for no training
    # selects the tokens that stay in the vocabulary; None if all tokens stay
    vocabulary: Trim | None = None

    @cached_property
    def code(self) -> dict[str, str]:
        """A digest of the user's code for metric, structure and compensation, for cache keys.

        The dict is empty if all three classes belong to flap. The digest covers the files that
        define the classes and their base classes, but no files that these files import. The files
        are read once, when a run begins. A class without a file, such as a class in a notebook,
        gets a random digest, so that no other run has the same key.
        """
        modules = set[str]()
        for choice in (*(self.selection or ()), self.compensation):
            modules |= {base.__module__ for base in type(choice).__mro__}
        others = sorted(name for name in modules if name.partition(".")[0] not in OF_FLAP)
        return {"code": digest([_source(name) for name in others])} if others else {}

    @property
    def experts(self) -> bool:
        """Whether the units of a mixture of experts are whole experts, instead of neurons."""
        if self.given is not None:
            return self.given.experts
        return self.selection is not None and self.selection.structure.experts

    @property
    def layer_by_layer(self) -> bool:
        """Whether the units that stay in a layer depend only on the scores of this layer."""
        return self.selection is not None and self.selection.structure.layer_by_layer

    @property
    def search(self) -> Search | None:
        """The structure if it is a search, else None."""
        if self.selection is None or not isinstance(self.selection.structure, Search):
            return None
        return self.selection.structure

    @property
    def in_sequence(self) -> bool:
        """Whether each layer is pruned before statistics of the next layer are collected.

        The method Wanda-sp prunes in this way.
        """
        return self.calibration.propagate == "pruned" and self.need_windows

    def keep_everything(self, budget: Budget) -> bool:
        """Return whether all units stay, so that no unit has to be scored.

        Return False if the config names a plan. Also return False if units may be removed at a
        ratio of 0, because an option of the structure, such as `round_to`, rounds the number of
        heads or neurons that a layer keeps.
        """
        if self.selection is None or budget.to_remove:
            return False
        limits = [self.selection.structure.limits(layer) for layer in budget.layers]
        return all(block.counts[0] == 0 for pair in limits for block in pair)

    @property
    def need_windows(self) -> bool:
        """Whether calibration windows are needed, for statistics, a search or training."""
        trained = self.recovery is not None and self.recovery.use == "calibration"
        needed = any(reader.needs_statistics for reader in self._readers)
        return trained or self.search is not None or needed

    @property
    def need_covariance(self) -> bool:
        """Whether the metric or the compensation needs covariances.

        These are the covariances of the inputs of each output projection.
        """
        return any(reader.needs_covariance for reader in self._readers)

    @property
    def need_gradients(self) -> bool:
        """Whether the metric needs gradients of the loss."""
        return self.selection is not None and self.selection.metric.needs_gradients

    @property
    def read_plain_statistics(self) -> bool:
        """Whether statistics without covariances are collected in all layers before pruning begins.

        These statistics are collected if the metric or the compensation needs statistics but no
        covariances, unless `in_sequence` is true.
        """
        plain = [one for one in self._readers if not one.needs_covariance]
        return not self.in_sequence and any(reader.needs_statistics for reader in plain)

    @property
    def _readers(self) -> list[Metric | Compensation]:
        """The choices that may need statistics: the compensation, and the metric if it is used."""
        if self.selection is None:
            return [self.compensation]
        return [self.selection.metric, self.compensation]


def choose(config: FlapConfig) -> Choices:
    """Instantiate the choices of a config, such as metric, structure, compensation and evaluators.

    Raises:
        ValueError: an option of a choice is out of range, or two choices cannot be combined.
    """
    vocabulary = None
    if config.vocabulary:
        vocabulary = build("vocabulary", config.vocabulary, Trim)

    selection = None
    given = None
    if config.plan is None:
        metric = build("metric", config.metric, Metric)
        selection = Selection(metric, build("structure", config.structure, Structure))
    else:
        given = GivenPlan.read(config.plan)

    evaluators = {}
    for name, options in (config.eval or {}).items():
        evaluators[name] = build(f"eval.{name}", options, Evaluator)
    compensation = build("compensation", config.compensation, Compensation)
    choices = Choices(
        selection,
        given,
        compensation,
        evaluators,
        config.calibration,
        config.seed,
        config.ratio or 0,
        config.target,
        config.mask_only,
        _recovery(config.recover, config.calibration),
        vocabulary,
    )
    _check_together(choices)
    return choices


def _recovery(chosen: Any, calibration: CalibrationConfig) -> Recovery | None:
    """Instantiate the training after compression; return None if `recover` is not set.

    With recover=reconstruct, the model is trained on the calibration windows.
    """
    if not chosen:
        return None
    recovery: Recovery | Reconstruction = build("recover", chosen, Recovery, Reconstruction)
    if isinstance(recovery, Reconstruction):
        return recovery.on(calibration.num_samples, calibration.seq_len)
    return recovery


def _check_together(choices: Choices) -> None:
    if choices.mask_only:
        training = getattr(choices.recovery, "name", "")
        allowed = f"false with recover={training}, because training would change the masked units"
        require(choices.recovery is None, "mask_only", True, allowed)
        allowed = "false with vocabulary=trim, which removes rows instead of masking them"
        require(choices.vocabulary is None, "mask_only", True, allowed)
        allowed = "false with structure.experts=true, as a router cannot be masked"
        require(not choices.experts, "mask_only", True, allowed)

    if choices.vocabulary is not None:
        allowed = (
            "another measurement with vocabulary=trim, because the dense and the trimmed model "
            "predict different tokens; eval=perplexity compares them by bits per byte"
        )
        for evaluator in choices.evaluators.values():
            require(not isinstance(evaluator, Divergence), "eval", "divergence", allowed)

    propagate = choices.calibration.propagate
    if propagate != "dense":
        allowed = "dense with plan"
        if choices.selection is not None:
            allowed = (
                "structure=UL-UM, UL-MM or middle, because an adaptive plan is known only after "
                "every layer has its statistics"
            )
        field = "calibration.propagate"
        require(choices.layer_by_layer, field, propagate, allowed)
        allowed = "dense with a metric that needs gradients, which are those of the dense model"
        require(not choices.need_gradients, field, propagate, allowed)

    if choices.selection is not None:
        _check_selection(*choices.selection)

    if choices.need_covariance:
        samples = choices.calibration.num_samples
        allowed = "at least 2, because some windows are held out to compare fits"
        require(samples >= 2, "calibration.num_samples", samples, allowed)


def _check_selection(metric: Metric, structure: Structure) -> None:
    if structure.ranks_errors:
        scale = getattr(structure, "scale", "")
        allowed = (
            "metric=WIFV or metric=OBS, whose scores are output errors, or structure.scale=z-score"
        )
        require(metric.measures_error, "structure.scale", scale, allowed)
        allowed = f"false with structure.scale={scale}: squared scores are not output errors"
        require(not metric.square_attention, "metric.square_attention", True, allowed)

    if metric.scores_experts:
        allowed = (
            "true with a metric that scores the whole experts of a mixture; WIFV and others score "
            "neurons"
        )
        require(structure.experts, "structure.experts", False, allowed)


def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return uuid4().hex


def check_budget(adapter: ModelAdapter, choices: Choices, model: ModelSource) -> Budget:
    """Check that the choices fit the model, and return the number of parameters to remove.

    Parameters are counted from the shapes of the tensors, without reading weights.

    Raises:
        ValueError: the ratio, a target or a choice does not fit this model.
    """
    why = "for this model, whose layers read the tokens' own embeddings and keys of earlier layers"
    can_search = choices.search is None or not adapter.reads_tokens
    require(can_search, "structure", "search", f"another structure {why}")
    allowed = f"device or auto {why}"
    require(
        not (model.placed.streams and adapter.reads_tokens),
        "model.placement",
        model.placement,
        allowed,
    )
    if choices.selection is not None:
        name = type(choices.selection.metric).__name__
        allowed = f"device with the metric {name}, which needs gradients of the whole model there"
        fits = model.placed.whole or not choices.need_gradients
        require(fits, "model.placement", model.placement, allowed)
    budget = price(adapter, choices.ratio)
    if targets(choices.target):
        budget = budget.within(bounds(adapter, choices, model))
    if choices.selection is not None:
        choices.selection.structure.check(budget)
    if choices.given is not None:
        choices.given.check(budget)
        return replace(budget, ratio=1 - budget.kept(choices.given.plan) / budget.total)
    return budget


def bounds(adapter: ModelAdapter, choices: Choices, model: ModelSource) -> tuple[Bound, ...]:
    """Return the upper bounds that the config section `target` sets on the pruned model's size.

    Raises:
        ValueError: the bytes of the weights or of the KV cache cannot be counted for this model.
    """
    adds = choices.compensation.adds_bias
    biases = Biases(adds, adds and choices.layer_by_layer and takes_output_biases(adapter))
    if model.loaded:
        _check_types(adapter, choices.target)
    layers = price(adapter, 0).layers
    itemsize = model.dtype.itemsize
    return bounds_of_shapes(choices.target, adapter, layers, itemsize, biases, model.max_length)


def _check_types(adapter: ModelAdapter, target: TargetConfig) -> None:
    """Check that all weights have the same dtype if a target limits the bytes of the weights.

    Small weights that transformers always keeps in float32 are not checked.
    """
    model = adapter.model
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    types = set[str]()
    for name, weight in model.named_parameters():
        if not any(part in name for part in kept):
            types.add(str(weight.dtype).removeprefix("torch."))
    allowed = (
        "target.parameters instead, as the weights of this model have several types "
        f"({', '.join(sorted(types))})"
    )
    for name, asked in targets(target).items():
        if name in ("bytes", "memory"):
            require(len(types) <= 1, f"target.{name}", asked, allowed)
