"""Make tiny pruned checkpoints with a given tokenizer, and compute their outputs in transformers.

This module also contains the RoPE settings with which these models are tested.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.method.allocation import Structure
from flap.method.compression import Compensation
from tests.cases import tiny_model
from tests.helpers.pruned import AL_AM, BIAS, prune, save_pruned
from tests.helpers.tokenizers import VOCAB

TOKENS = torch.randint(3, VOCAB, (1, 24), generator=torch.Generator().manual_seed(1))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = LINEAR | {"rope_type": "yarn", "original_max_position_embeddings": 32}


@dataclass(frozen=True)
class Exported:
    """A checkpoint, and the pruned model from which it was saved.

    An export of the checkpoint must compute the same outputs as this model.
    """

    directory: Path
    model: PreTrainedModel

    @torch.no_grad()
    def logprobs(self) -> Tensor:
        return self.model(input_ids=TOKENS).logits[0].log_softmax(-1)

    def greedy(self, prompt: Tensor = TOKENS, new_tokens: int = 12) -> list[int]:
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        return self.model.generate(prompt, **options)[0, prompt.shape[1] :].tolist()


def checkpoint(
    directory: Path,
    architecture: str,
    tokenizer: PreTrainedTokenizerFast,
    structure: Structure = AL_AM,
    compensation: Compensation = BIAS,
    **changes: object,
) -> Exported:
    """Prune a tiny model by 40 %, and save it with the tokenizer.

    changes: values that replace values in the config of the tiny model.
    """
    changes = {"vocab_size": VOCAB, "eos_token_id": tokenizer.eos_token_id, **changes}
    model = tiny_model(architecture, **changes)
    plan = prune(model, 0.4, structure=structure, compensation=compensation)
    return Exported(save_pruned(model, tokenizer, directory, plan).directory, model)
