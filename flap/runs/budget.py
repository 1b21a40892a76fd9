"""The budget of a run, counted from the tensors and checked against the choices."""

from flap.checkpoint.stock import takes_output_biases
from flap.config import FlapConfig, require, targets
from flap.method.allocation import Biases, Budget, bounds_of_shapes, price
from flap.models import ModelAdapter, ModelSource
from flap.models.conv1d import Transposed
from flap.runs.choices import Choices


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
