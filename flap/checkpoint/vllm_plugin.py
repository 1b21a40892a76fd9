"""A plugin for vLLM that serves pruned checkpoints without `trust_remote_code`.

vLLM refuses to serve architectures that are not registered. In each vLLM process, vLLM calls
`register` (entry point `vllm.general_plugins`), which registers the pruned architectures. vLLM's
Transformers backend serves pruned models, and builds the layers with classes of `modeling_flap.py`.
For mixtures of experts, `vllm_model.py` extends this backend.
"""

import logging
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.modeling.families import FAMILIES
from flap.modeling.modeling_flap import check_for_vllm
from flap.modeling.register import known
from flap.modeling.register import register as register_with_transformers

log = logging.getLogger(__name__)

# The classes that vLLM imports to build a model. The class for mixtures of experts runs the experts
# in vLLM's fused kernels.
DENSE = "vllm.model_executor.models.transformers:TransformersForCausalLM"
MIXTURE = "flap.checkpoint.vllm_model:TransformersMoEForCausalLM"

# Mixtures of experts for which the fused kernels of vLLM 0.32 are not used, because they fail or
# give different results than transformers. For Gemma 4, vLLM and transformers read the number of
# experts per token from different config keys. For Llama 4, vLLM gives a token only to its chosen
# experts, but transformers gives each token to all experts. For DeepSeek-V3, vLLM has no float32
# kernel on a CPU.
RUN_BY_TRANSFORMERS = ("gemma4_text", "llama4_text", "deepseek_v3")
# Pruned architectures that are not registered: vLLM 0.32 loads Falcon-H1, but generates a text that
# differs from the text that transformers generates.
LEFT_OUT = ("falcon_h1",)


class Checks:
    """Checks of pruned models, which vLLM calls before it starts worker processes."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise a RuntimeError if vLLM's processes cannot share heads and neurons equally."""
        widths = vllm_config.model_config.hf_text_config.to_dict()["per_layer_config"]
        try:
            check_for_vllm(widths, vllm_config.parallel_config.tensor_parallel_size)
        except ValueError as error:  # vLLM would hide a ValueError among many lines of output
            raise RuntimeError(str(error)) from None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Do nothing. vLLM requires this method."""


def register() -> None:
    """Register the pruned architectures.

    vLLM calls this function for every model that it serves, and stops if the function raises an
    error. Therefore a failure, for example with another version of vLLM, only logs a warning.
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
            # register two names for GPT-2, because earlier versions of flap called its class
            # FlapGPT2ForCausalLM
            for architecture in {name, name.replace("LMHeadModel", "ForCausalLM")}:
                ModelRegistry.register_model(architecture, MIXTURE if fused else DENSE)
                MODELS_CONFIG_MAP[architecture] = Checks
    except Exception as error:  # another version of vLLM may raise any error here
        log.warning(
            "flap: this vLLM cannot serve pruned checkpoints; other models are not affected (%r)",
            error,
        )
