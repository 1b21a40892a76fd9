"""The bytes that training takes at least, beside what tensors are really kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, PreTrainedConfig

from flap.method.recovery import Recovery, memory
from flap.method.recovery.memory import bytes_to_train, trained_parameters
from flap.method.recovery.student import Student
from flap.method.recovery.trainable import trainable
from flap.models import Resident, adapt
from tests.cases import ARCHITECTURES, MIXTURES, random_model, tokens

CPU = torch.device("cpu")
WIDE = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 16, "num_key_value_heads": 16}
SMALL = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
OPTIONS = Recovery("words", 10**6, 1e-3, seq_len=24, batch_size=6)
LORA = replace(OPTIONS, rank=4)


def measured(recovery: Recovery, config: PreTrainedConfig) -> int:
    """The bytes of all tensors that a step keeps: parameters, gradients, moments, activations for the backward pass."""
    model = random_model(config)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with trainable(recovery, model) as trained:
        student, kept = Student(Resident(model), Resident(model), trained, None).train(), list[Tensor]()
        own = {parameter.untyped_storage().data_ptr(): parameter.nbytes for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            student(tokens())
        activations = sum(num_bytes for place, num_bytes in saved.items() if place not in own)
        return sum(own.values()) + 3 * sum(parameter.nbytes for parameter in trained) + activations


KEPT = [(OPTIONS, "llama-mha"), (OPTIONS, "qwen3-gqa"), (OPTIONS, "mixtral"), (LORA, "llama-gqa-biases")]


@pytest.mark.parametrize(("recovery", "architecture"), KEPT)
def test_it_is_at_least_half_of_what_is_kept_and_not_more(recovery: Recovery, architecture: str) -> None:
    config = type(ARCHITECTURES.get(architecture) or MIXTURES[architecture])
    wide = config(**((ARCHITECTURES | MIXTURES)[architecture].to_dict() | WIDE))
    adapter = adapt(random_model(wide))
    logits = memory.LOGITS_COPIES * 4 * tokens().numel() * wide.vocab_size  # of a chunk, dropped before the next
    estimated = bytes_to_train(recovery, adapter, 0.0, torch.float32, CPU) - logits
    assert 0.5 < estimated / measured(recovery, wide) <= 1.02


@pytest.mark.parametrize("config", [ARCHITECTURES["llama-mha"], GPT2Config(**SMALL)])
def test_what_is_trained_is_counted(config: PreTrainedConfig) -> None:
    """Of GPT-2, too, whose matrices are no Linear modules."""
    model = random_model(config)
    for recovery in (OPTIONS, LORA):
        counted = trained_parameters(recovery, adapt(model), 0.0)
        with trainable(recovery, model) as trained:
            assert counted == pytest.approx(sum(p.numel() for p in trained), rel=0.1)
