"""Measure how much the predictions of the pruned model differ from those of the dense model.

Legend: N windows · T tokens in each window · D hidden size · V tokens of the vocabulary · P
positions of a window that are compared together · K most likely tokens at a position.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from flap.data import Batch
from flap.evaluation.base import Better, Measurement, Task
from flap.evaluation.errors import averaged
from flap.evaluation.text_options import OnTexts
from flap.models import ModelAdapter, PlacedModel
from flap.models.hidden_files import HiddenFiles
from flap.models.predictions import map_batches, positions_per_chunk, shared_hidden_states

# The number of tensors, each as large as one model's logits, that are in memory at the same time:
# the logits of both models, and intermediate results.
COPIES = 4


@dataclass(frozen=True)
class Divergence(OnTexts):
    """How far the pruned model's next-token probabilities q are from those of the dense model, p.

    The probabilities are compared at all positions of a window except its last position.

    `kl`: KL(p ‖ q) = Σ p (log p - log q) over the vocabulary, in nats per token; 0 or more, lower
    is better. `agreement`: the share of the positions at which both models have the same most
    likely token; higher is better. `top5_agreement`: the share of the dense model's five most
    likely tokens that are among the pruned model's five most likely tokens; higher is better.
    `acceptance`: Σ min(p, q) over the vocabulary; higher is better. The acceptance is the
    probability that the dense model accepts a token that the pruned model drafts in speculative
    decoding, if both models sample. If both models decode greedily instead, the `agreement` is the
    probability of acceptance.

    The numbers are means over windows, with standard errors. The dense model's final hidden states
    are stored instead of its logits. The LM head, which pruning does not change, computes the
    logits from these states. The options are described in `OnTexts`.

    Source: Kullback and Leibler, Annals of Mathematical Statistics 22 (1951); acceptance: Leviathan
    et al., ICML 2023, arXiv 2211.17192, corollary 3.6.
    Command: python -m flap eval=[divergence] eval.divergence.datasets=[boolq-passages]
    """

    section: ClassVar[str] = "eval.divergence"

    def task(self, text: str, seq_len: int, windows: Batch, bytes_N: Tensor, **about: Any) -> Task:
        """Return the task that compares the dense and the pruned model on a text's windows.

        about: further fields of the task.
        """
        batches_NT = windows.tokens_NT.split(self.batch_size)

        def measure(model: PlacedModel, dense: Sequence[Tensor]) -> Measurement:
            measured = Measurement()
            for name, values in compare(model, dense, batches_NT).items():
                better: Better = "lower" if name == "kl" else "higher"
                measured |= averaged(f"{text}/{name}@{seq_len}", values, better)
            return measured

        reference = partial(reference_states, batches_NT=batches_NT)
        return Task(f"{text}/divergence@{seq_len}", measure, **about, reference=reference)


def reference_states(model: PlacedModel, batches_NT: Sequence[Tensor]) -> list[Tensor]:
    """Return the dense model's final hidden states for the batches that this process runs.

    If the run has a working directory, the states are in memory-mapped files, and otherwise in host
    memory.

    Raises:
        ValueError: the disk has too little free space for the states.
    """
    states = shared_hidden_states(model, batches_NT)
    if model.work.path is None:
        return [hidden_NTD.cpu() for hidden_NTD in states]
    model.work.path.mkdir(parents=True, exist_ok=True)
    # The folder is deleted at the end of this block, but the states in its files stay readable as
    # long as the files are mapped into memory. On NFS, the folder cannot be deleted, so it remains.
    with TemporaryDirectory(dir=model.work.path, ignore_cleanup_errors=True) as folder:
        files = HiddenFiles(Path(folder))
        return [files.new([tuple(one.shape)], one.dtype)[0][0].copy_(one) for one in states]


@torch.no_grad()
def compare(
    model: PlacedModel, dense: Sequence[Tensor], batches_NT: Sequence[Tensor]
) -> dict[str, list[float]]:
    """Return kl, agreement, top5_agreement and acceptance, each as a list of one value per window.

    model: the pruned model.
    dense: the final hidden states of the dense model for the batches that this process runs.
    """
    chunk = max(1, positions_per_chunk(model.adapter.vocab_size) // COPIES)
    of_dense = iter(dense)

    def measure(batch_NT: Tensor, pruned_NTD: Tensor) -> list[dict[str, float]]:
        windows = []
        for pair in zip(next(of_dense).to(model.device), pruned_NTD, strict=True):
            total = defaultdict[str, float](float)
            for hidden in zip(*(hidden_TD[:-1].split(chunk) for hidden_TD in pair), strict=True):
                for name, value in _sums(model.adapter, *hidden).items():
                    total[name] += value
            positions = batch_NT.shape[1] - 1
            windows.append({name: value / positions for name, value in total.items()})
        return windows

    of_windows = list(chain(*map_batches(model, batches_NT, "divergence", measure)))
    return {name: [window[name] for window in of_windows] for name in of_windows[0]}


def _sums(adapter: ModelAdapter, dense_PD: Tensor, pruned_PD: Tensor) -> dict[str, float]:
    """Return kl, agreement, top5_agreement and acceptance, summed over positions.

    dense_PD, pruned_PD: the final hidden states of the dense and of the pruned model.
    """
    dense_PV = adapter.logits(dense_PD).float()
    pruned_PV = adapter.logits(pruned_PD).float()
    log_p_PV = log_softmax(dense_PV, dim=-1)
    log_q_PV = log_softmax(pruned_PV, dim=-1)
    likeliest = min(5, dense_PV.shape[1])
    dense_PK, pruned_PK = (logits_PV.topk(likeliest).indices for logits_PV in (dense_PV, pruned_PV))
    common = (dense_PK[:, :, None] == pruned_PK[:, None, :]).sum().item()
    kl = kl_div(log_q_PV, log_p_PV, reduction="sum", log_target=True).item()
    # the total variation distance between p and q, Σ |p - q| / 2, summed over positions
    distance = log_p_PV.exp_().sub_(log_q_PV.exp_()).abs_().sum().item() / 2
    return {
        "kl": kl,
        "agreement": (dense_PV.argmax(-1) == pruned_PV.argmax(-1)).sum().item(),
        "top5_agreement": common / likeliest,
        "acceptance": len(dense_PV) - distance,  # at one position: 1 - Σ |p - q| / 2
    }
