"""Measure how much the predictions of the pruned model differ from those of the dense model.

Legend: the suffix of a tensor's name lists its axes (N: windows, T: tokens of a window, D: hidden
size, V: vocabulary, P: positions of a window that are compared together, K: the most likely tokens
at a position).
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

# The number of tensors, each as large as the logits of one model, that are in memory at the same
# time. They are the logits of both models, and intermediate results.
COPIES = 4


@dataclass(frozen=True)
class Divergence(OnTexts):
    """How much the next-token probabilities p of the dense model and q of the pruned model differ.

    The two models read the same windows of a text. Their probabilities are compared at all
    positions of a window except the last position. There are four measures:

    - `kl` is the Kullback-Leibler divergence KL(p ‖ q) = Σ p (log p - log q), summed over the
      vocabulary, in nats per token. It is 0 or more; lower is better.
    - `agreement` is the share of the positions at which both models have the same most likely
      token; higher is better.
    - `top5_agreement` is the share of the dense model's five most likely tokens that are among the
      pruned model's five most likely tokens; higher is better.
    - `acceptance` is Σ min(p, q), summed over the vocabulary; higher is better. If the pruned model
      drafts tokens for the dense model in speculative decoding, and both models sample, this is the
      probability that the dense model accepts a drafted token. If both models decode greedily, this
      probability is the `agreement`.

    The measures are means over windows, with standard errors. The dense model's final hidden states
    are stored instead of its logits, because hidden states take less memory. The LM head, which
    pruning does not change, computes the logits from these states. The options are described in
    `OnTexts`.

    Source: Kullback and Leibler, Annals of Mathematical Statistics 22 (1951); acceptance: Leviathan
    et al., ICML 2023, arXiv 2211.17192, corollary 3.6.
    Command: python -m flap eval=[divergence] eval.divergence.datasets=[boolq-passages]
    """

    section: ClassVar[str] = "eval.divergence"

    def task(self, text: str, seq_len: int, windows: Batch, bytes_N: Tensor, **about: Any) -> Task:
        """Return the task that compares the dense and the pruned model on a text's windows.

        about: the fields of `Task` that describe the text.
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
    """Return the dense model's final hidden states for the batches that this process works on.

    If several processes share the evaluation, each process computes some of the batches. If the run
    has a working directory, the states are in memory-mapped files, and otherwise in host memory.

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
    dense: the result of `reference_states` for the dense model.
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
