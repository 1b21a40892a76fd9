"""vLLM's plugin (`vllm.general_plugins`): serve pruned checkpoints without `trust_remote_code`.

vLLM calls `register` in each of its processes. Its Transformers backend serves the pruned
architectures and builds their layers with the classes of `modeling_flap.py`; for mixtures of
experts it is extended in `vllm_model.py`. vLLM refuses architectures that are not registered.
"""

import logging
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.modeling.families import FAMILIES
from flap.modeling.modeling_flap import check_for_vllm
from flap.modeling.register import known
from flap.modeling.register import register as register_with_transformers

log = logging.getLogger(__name__)

# The classes that vLLM imports when it builds a model. The one for mixtures runs experts in the
# fused kernels of vLLM.
DENSE = "vllm.model_executor.models.transformers:TransformersForCausalLM"
MIXTURE = "flap.checkpoint.vllm_model:TransformersMoEForCausalLM"

# Mixtures that the fused kernels of vLLM 0.32 cannot run. vLLM reads another key for the number
# of chosen experts (Gemma 4), gives tokens only to the chosen experts (Llama 4), or has no kernel
# in float32 on a CPU (DeepSeek-V3).
RUN_BY_TRANSFORMERS = ("gemma4_text", "llama4_text", "deepseek_v3")
# vLLM 0.32 loads this family, but writes another text than transformers.
LEFT_OUT = ("falcon_h1",)


class Checks:
    """The checks of pruned architectures, which vLLM runs before it starts other processes."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise a RuntimeError if the widths cannot be split over vLLM's processes."""
        widths = vllm_config.model_config.hf_text_config.to_dict()["per_layer_config"]
        try:
            check_for_vllm(widths, vllm_config.parallel_config.tensor_parallel_size)
        except ValueError as error:  # vLLM would print a ValueError among lines of its own
            raise RuntimeError(str(error)) from None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Change nothing."""


def register() -> None:
    """Register the pruned architectures.

    vLLM calls this for every model that it serves, and stops if it raises an error. If this
    version of vLLM has other registries, log a warning and change nothing.
    """
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        register_with_transformers()
        for model_type in known(FAMILIES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            if model_type in LEFT_OUT:
                continue
            fused = FAMILIES[model_type].experts and model_type not in RUN_BY_TRANSFORMERS
            name = f"Flap{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}"
            # earlier versions called the class of GPT-2 FlapGPT2ForCausalLM
            for architecture in {name, name.replace("LMHeadModel", "ForCausalLM")}:
                ModelRegistry.register_model(architecture, MIXTURE if fused else DENSE)
                MODELS_CONFIG_MAP[architecture] = Checks
    except Exception as error:  # another version of vLLM may raise any error here
        log.warning(
            "flap: this vLLM cannot serve pruned checkpoints, other models are not affected (%r)",
            error,
        )
