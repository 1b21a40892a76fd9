"""vLLM's plugin entry point (`vllm.general_plugins`): pruned checkpoints without `trust_remote_code`.

vLLM calls `register` in each of its processes. The pruned architectures are served by its Transformers backend (for
mixtures `vllm_model.py`), which builds their layers with the classes of `modeling_flap.py`. It refuses those that are
left out here.
"""

import logging
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flap.modeling.families import FAMILIES
from flap.modeling.modeling_flap import check_for_vllm
from flap.modeling.register import known
from flap.modeling.register import register as register_with_transformers

log = logging.getLogger(__name__)

# vLLM imports these when it builds such a model; that for mixtures runs experts in vLLM's own kernels.
DENSE = "vllm.model_executor.models.transformers:TransformersForCausalLM"
MIXTURE = "flap.checkpoint.vllm_model:TransformersMoEForCausalLM"

# Mixtures that this class of vLLM 0.32 cannot run: it reads another key for the number of chosen experts (Gemma 4),
# gives tokens to the chosen ones alone (Llama 4), and has no kernel for DeepSeek-V3 in float32 on a CPU.
RUN_BY_TRANSFORMERS = ("gemma4_text", "llama4_text", "deepseek_v3")
LEFT_OUT = ("falcon_h1",)  # vLLM 0.32 loads it, and writes another text than transformers


class Checks:
    """What vLLM asks in the process of its user, before it starts others: in its table of checks by architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raise a RuntimeError if widths cannot be split over vLLM's processes."""
        widths = vllm_config.model_config.hf_text_config.to_dict()["per_layer_config"]
        try:
            check_for_vllm(widths, vllm_config.parallel_config.tensor_parallel_size)
        except ValueError as error:  # which vLLM would print with lines of its own around it
            raise RuntimeError(str(error)) from None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Change nothing."""


def register() -> None:
    """Register the pruned architectures; with a vLLM that has other registries, warn and leave it as it is.

    vLLM calls this for every model that it serves, and ends where it raises.
    """
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP

        register_with_transformers()
        for model_type in known(FAMILIES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
            if model_type in LEFT_OUT:
                continue
            name = f"Flap{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]}"
            fused = FAMILIES[model_type].experts and model_type not in RUN_BY_TRANSFORMERS
            # earlier versions called the class of GPT-2 FlapGPT2ForCausalLM
            for architecture in {name, name.replace("LMHeadModel", "ForCausalLM")}:
                ModelRegistry.register_model(architecture, MIXTURE if fused else DENSE)
                MODELS_CONFIG_MAP[architecture] = Checks
    except (
        Exception
    ) as error:  # of any type, as what changes between versions of vLLM has no public name
        log.warning(
            "flap: this vLLM cannot serve pruned checkpoints, other models are not affected (%r)",
            error,
        )
