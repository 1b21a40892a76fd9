"""The stage: the compressed model is trained to predict what the dense one predicts (Hinton et al., arXiv 1503.02531).

Legend: N windows · T tokens a window.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flap.data import Windows, split_windows
from flap.data.counted import judged, unmarked
from flap.data.overlap import OVERLAP
from flap.data.temporary_state import seeded
from flap.data.text import ngrams
from flap.method.recovery.base import Recovery
from flap.method.recovery.student import Student, mean_divergence
from flap.method.recovery.trainable import trainable
from flap.method.recovery.training import BEST, HISTORY, train
from flap.models import PlacedModel
from flap.storage import load_json

log = logging.getLogger(__name__)


def training_windows(recovery: Recovery, windows: Windows, own: Windows | None = None) -> Tensor:
    """Return the windows of a training, tokens_NT, of which the first ones are held out.

    own: the same with the answers of the pruned model, which it is trained on (`both`: in every second window of each
    text): it meets its own mistakes, and learns what the dense model predicts after them. What is held out has the
    dense model's answers, and by these it judges; by texts without answers only where there are no others.
    """
    of_windows = (windows.tokens_NT, windows.marked_NT, windows.text_N)
    first = recovery.held_out
    tokens_NT, marked_NT, text_N = (_held_out_first(recovery, tensor) for tensor in of_windows)
    plain_N1 = torch.tensor([not (text and text.counted) for text in windows.texts])[
        text_N[:first], None
    ]
    tokens_NT[:first] = judged(
        torch.where(plain_N1, -1 - marked_NT[:first], marked_NT[:first]), torch.zeros(first)
    )
    if own is not None:
        own_NT = _held_out_first(recovery, own.tokens_NT)
        for part in windows.asked:
            taken = (
                first
                + (text_N[first:] == part)
                .nonzero()
                .flatten()[:: 2 if recovery.writer == "both" else 1]
            )
            tokens_NT[taken] = _unseen(own_NT[taken], marked_NT[:first])
    return tokens_NT


def _unseen(tokens_NT: Tensor, held_out_NT: Tensor) -> Tensor:
    """Return the windows, each token marked in place that ends a run of OVERLAP tokens of a held-out window."""
    seen = {run for row in unmarked(held_out_NT).tolist() for run in ngrams(row, OVERLAP)}
    for row_T in tokens_NT:
        ends = [
            at
            for at, run in enumerate(ngrams(unmarked(row_T).tolist(), OVERLAP), OVERLAP - 1)
            if run in seen
        ]
        row_T[ends] = -1 - unmarked(row_T[ends])
    return tokens_NT


def _held_out_first(recovery: Recovery, tokens_NT: Tensor) -> Tensor:
    if recovery.use == "recovery":
        return tokens_NT
    fitting_NT, held_out_NT = split_windows(tokens_NT)
    return torch.cat([held_out_NT, fitting_NT])


def distil(
    recovery: Recovery,
    model: PlacedModel,
    teacher: PlacedModel,
    tokens_NT: Tensor,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Train the compressed model in place and return what the report says of it; never worse than before, as saved.

    teacher: the dense model. tokens_NT: the held-out ones first. folder: an interrupted training resumes from it.

    Raises:
        ValueError: the predictions of the compressed model are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bf16 = model.model.dtype == torch.bfloat16
    start = {name: parameter.detach().cpu() for name, parameter in model.model.named_parameters()}
    before = mean_divergence(
        model, teacher, tokens_NT[: recovery.held_out], recovery.windows_a_step
    )
    if not math.isfinite(before):
        raise ValueError(
            f"recover={recovery.name}: the predictions of the compressed model are not finite"
        )
    with seeded(seed), trainable(recovery, model.model) as trained:
        student = Student(model, teacher, trained)
        train(student, recovery, tokens_NT, folder, seed, bf16)
        student.load_state_dict(load_file(folder / BEST))
    after = mean_divergence(model, teacher, tokens_NT[: recovery.held_out], recovery.windows_a_step)
    better = after < before  # what was gained in float32 may be lost in the model's own type
    if not better:
        for name, parameter in model.model.named_parameters():
            parameter.data = start[name].to(parameter.device)
    summary = _summary(recovery, load_json(folder / HISTORY), better)
    return {"nats_before": before, "nats_after": min(before, after), **summary}


def _summary(recovery: Recovery, history: list[tuple[int, float]], better: bool) -> dict[str, Any]:
    """Return what the report says of the training. history: steps, each with the held-out divergence after it."""
    by_tokens = [
        (step * recovery.tokens_a_step, nats if math.isfinite(nats) else None)
        for step, nats in history
    ]
    best = min((nats, tokens) for tokens, nats in by_tokens if nats is not None)[1] if better else 0
    if best == 0:
        log.warning(
            "recover=%s: no step was better than the compressed model, which stays as it is",
            recovery.name,
        )
    stopped_early = history[-1][0] < recovery.steps
    if stopped_early:
        log.warning(
            "recover=%s: ended after %d of %d tokens, because it got no better; what it had after %d is kept",
            recovery.name, by_tokens[-1][0], recovery.steps * recovery.tokens_a_step, best,
        )  # fmt: skip
    return {
        "choice": recovery.name,
        "tokens": by_tokens[-1][0],
        "best_after_tokens": best,
        "stopped_early": stopped_early,
        "nats_by_tokens": by_tokens,
    }
