"""Read outputs of transformers, which `make.py` has stored next to each checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Expected:
    """Prompts, their greedy continuations, and the log-probabilities of all these tokens.

    Only the first token of each prompt has no log-probability.
    """

    prompts_NT: Tensor
    generated_NT: Tensor
    logprobs_NT: Tensor

    @classmethod
    def of(cls, checkpoint: Path) -> "Expected":
        return cls(**load_file(f"{checkpoint}.safetensors"))
