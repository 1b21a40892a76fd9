"""Reading weights with transformers, and refusing models whose missing tensors it would fill with random numbers."""

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from transformers import PreTrainedModel

from flap.config import one_line
from flap.models.configs import read_config
from flap.models.families import auto_class
from flap.models.quantised import dequantising
from flap.models.refreshed_experts import choose_kernel, is_experts
from flap.models.weights import check_read


def read_model(path: str | Path, **options: Any) -> PreTrainedModel:
    """Read a language model, in evaluation mode, with the vision tower that it may have. Only safetensors.

    Quantised weights are dequantised. options: as of `from_pretrained`.

    Raises:
        ValueError: a file is missing or damaged, or the files lack tensors that the architecture needs.
    """
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # checked below, to name the tensors
    options = {"dtype": "auto", "use_safetensors": True, **options, **reported}
    try:
        config = read_config(path, trust_remote_code=options.get("trust_remote_code"))
        model, info = auto_class(config).from_pretrained(path, **options, **dequantising(config))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: {one_line(error, 300)}") from error
    try:
        check_read(info)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for module in model.modules():
        if is_experts(module):
            choose_kernel(module)
    return cast(PreTrainedModel, model.eval())
