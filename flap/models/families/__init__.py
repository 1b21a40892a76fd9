"""The adapters of the model families. To add one, derive from ModelAdapter in a file here and list it in FAMILIES."""

from transformers import PreTrainedConfig, PreTrainedModel

from flap.models.adapter import ModelAdapter
from flap.models.families.gemma import GemmaAdapter
from flap.models.families.gpt_neox import GPTNeoXAdapter
from flap.models.families.granite import GraniteAdapter
from flap.models.families.llama import LlamaAdapter
from flap.models.families.mixture import MixtureAdapter
from flap.models.families.olmo2 import Olmo2Adapter
from flap.models.families.opt import OPTAdapter
from flap.models.families.phi3 import Phi3Adapter
from flap.models.families.starcoder2 import Starcoder2Adapter

FAMILIES: tuple[type[ModelAdapter], ...] = (
    LlamaAdapter, GemmaAdapter, GraniteAdapter, Olmo2Adapter, Starcoder2Adapter, Phi3Adapter, OPTAdapter,
    GPTNeoXAdapter, MixtureAdapter,
)  # fmt: skip


def adapter_class(config: PreTrainedConfig) -> type[ModelAdapter]:
    """Return the adapter class of an architecture by its `model_type`; no weight needs to be loaded.

    Raises:
        ValueError: no family has this architecture; the message lists the supported ones.
    """
    model_type = config.model_type.removeprefix("flap_")  # a pruned model can be pruned again
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise ValueError(
        f"model.path: architecture '{config.model_type}' is not supported; supported are {supported}; "
        "an adapter for another goes into flap/models/families/ (CONTRIBUTING.md, 'A new family')"
    )


def adapt(model: PreTrainedModel) -> ModelAdapter:
    """Return the adapter of a loaded model.

    Raises:
        ValueError: the architecture is not supported, or the model has no language model head.
    """
    family = adapter_class(model.config)
    if not type(model).__name__.endswith("ForCausalLM"):
        raise ValueError(f"model: {type(model).__name__} is no causal language model; expected a …ForCausalLM class")
    return family(model)
