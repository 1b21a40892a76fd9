"""Checks of a model's shapes against the choices: the budget, and what training needs."""

from collections.abc import Sequence

from flap.allocation import Biases, Budget, bounds_of_shapes, price
from flap.checkpoint.stock import takes_output_biases
from flap.config import FlapConfig, require, targets
from flap.evaluation import SideBySide
from flap.models import ModelAdapter, ModelSource
from flap.models.conv1d import Transposed
from flap.recovery import Recovery
from flap.runs.choices import Choices


def check_trainable(recovery: Recovery, source: ModelSource, adapter: ModelAdapter) -> None:
    """Check that the model can be trained after compression.

    Raises:
        ValueError: it cannot.
    """
    given = "none: flap.prune changes the loaded model in place, so no dense model is left as a teacher"
    require(not source.loaded, "recover", recovery.name, given)
    placement = f"device with recover={recovery.name}, which trains the whole model there"
    require(source.placed.whole, "model.placement", source.placement, placement)
    recovery.check(adapter)


def check_reloads(source: ModelSource) -> None:
    """Check that a checkpoint of a loaded model would compute what the model does in memory.

    Raises:
        ValueError: its rotary frequencies, which are in no file, are rounded; a reload has them in float32.
    """
    buffers = source.skeleton().named_buffers() if source.loaded else ()
    if any(name.endswith("inv_freq") and buffer.itemsize < 4 for name, buffer in buffers):
        raise ValueError(
            "model: its rotary frequencies are rounded, as by model.to(dtype), so a checkpoint would compute something "
            "else; expected one from from_pretrained(dtype=…), or checkpoint.save=false"
        )


def check_comparable(comparisons: Sequence[SideBySide], source: ModelSource) -> None:
    """Check that the dense model is there when both models are measured side by side.

    Raises:
        ValueError: it is not.
    """
    kept = not source.loaded or source.placed.whole
    given = "none: a model spread over devices is pruned in place and cannot be compared"
    require(kept or not comparisons, "eval", ", ".join(one.name for one in comparisons), given)


def check_budget(adapter: ModelAdapter, choices: Choices, config: FlapConfig, model: ModelSource) -> Budget:
    """Return the budget, counted from the tensors.

    Raises:
        ValueError: the ratio, a target or a choice does not fit this model.
    """
    plain = choices.structure.min_heads or adapter.runs_without_heads
    why = "whose attention does not run without heads (they share norms, sinks, latents or a state, or are GPT-2's)"
    allowed = f"1 or more for this model, {why}"
    require(bool(plain), "structure.min_heads", choices.structure.min_heads, allowed)
    conv1d = any(isinstance(adapter.mlp(i).output, Transposed) for i in range(len(adapter.layers)))
    allowed = "1 or more for this model, whose MLP does not run without neurons (GPT-2's)"
    require(choices.structure.min_neurons > 0 or not conv1d, "structure.min_neurons", 0, allowed)
    budget = price(adapter, config.ratio or 0)
    if targets(config.target):
        adds = choices.compensation.adds_bias
        biases = Biases(adds, adds and choices.structure.layer_by_layer and takes_output_biases(adapter))
        if config.target.bytes is not None and model.loaded:
            _check_types(adapter, config.target.bytes)
        itemsize, context = model.dtype.itemsize, model.max_length
        bounds = bounds_of_shapes(config.target, adapter, budget.layers, itemsize, biases, context)
        budget = budget.within(bounds)
    choices.structure.check(budget)
    return budget


def _check_types(adapter: ModelAdapter, asked: float) -> None:
    """Check that the weights have one type, but for the small ones that transformers always keeps in float32."""
    model = adapter.model
    kept = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    others = [one.dtype for name, one in model.named_parameters() if not any(part in name for part in kept)]
    types = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in others}))
    allowed = f"target.parameters instead, as the weights of this model have several types ({types})"
    require("," not in types, "target.bytes", asked, allowed)
