"""Distillation: the compressed model is trained to predict what the dense one predicts.

Source: Hinton et al., arXiv 1503.02531. Legend: N windows · T tokens a window.
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
from flap.data.text import ngrams
from flap.method.recovery.base import Recovery
from flap.method.recovery.student import Student, mean_divergence
from flap.method.recovery.trainable import trainable
from flap.method.recovery.training import BEST, HISTORY, train
from flap.models import PlacedModel
from flap.runtime.temporary_state import seeded
from flap.storage import load_json

log = logging.getLogger(__name__)


def training_windows(
    recovery: Recovery, windows: Windows, by_pruned: Windows | None = None
) -> Tensor:
    """Return the windows of a training, tokens_NT. The first `recovery.held_out` ones are held out.

    Held-out windows have the dense model's answers. They are judged by the answers of texts that
    have some, and by all tokens only if no text has answers.

    by_pruned: the same windows with answers of the pruned model, which it is trained on; with
        writer=both, every second window of each text. So it meets its own mistakes, and learns what
        the dense model predicts after them.
    """
    held_out = recovery.held_out
    tokens_NT = _held_out_first(recovery, windows.tokens_NT)
    marked_NT = _held_out_first(recovery, windows.marked_NT)
    text_N = _held_out_first(recovery, windows.text_N)

    # 1. mark what the held-out windows are not judged by
    without_answers = torch.tensor([not (text and text.counted) for text in windows.texts])
    plain_N1 = without_answers[text_N[:held_out], None]
    marked_or_plain_NT = torch.where(plain_N1, -1 - marked_NT[:held_out], marked_NT[:held_out])
    tokens_NT[:held_out] = judged(marked_or_plain_NT, torch.zeros(held_out))

    # 2. take the answers of the pruned model
    if by_pruned is not None:
        by_pruned_NT = _held_out_first(recovery, by_pruned.tokens_NT)
        step = 2 if recovery.writer == "both" else 1
        for part in windows.asked:
            of_part = (text_N[held_out:] == part).nonzero().flatten()
            taken = held_out + of_part[::step]
            tokens_NT[taken] = _mark_seen(by_pruned_NT[taken], marked_NT[:held_out])
    return tokens_NT


def _mark_seen(tokens_NT: Tensor, held_out_NT: Tensor) -> Tensor:
    """Mark in place the tokens that end a run of OVERLAP tokens that is in a held-out window."""
    seen = {run for row in unmarked(held_out_NT).tolist() for run in ngrams(row, OVERLAP)}
    for row_T in tokens_NT:
        runs = ngrams(unmarked(row_T).tolist(), OVERLAP)
        ends = [end for end, run in enumerate(runs, OVERLAP - 1) if run in seen]
        row_T[ends] = -1 - unmarked(row_T[ends])
    return tokens_NT


def _held_out_first(recovery: Recovery, tokens_NT: Tensor) -> Tensor:
    """Return the held-out windows, followed by the others."""
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
    """Train the compressed model in place, and return what the report says of the training.

    The model is never worse than before, in the type in which it is saved.

    teacher: the dense model.
    tokens_NT: the windows, of which the held-out ones are first.
    folder: an interrupted training resumes from it.

    Raises:
        ValueError: the predictions of the compressed model are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out_NT = tokens_NT[: recovery.held_out]
    bf16 = model.model.dtype == torch.bfloat16
    start = {name: parameter.detach().cpu() for name, parameter in model.model.named_parameters()}
    before = mean_divergence(model, teacher, held_out_NT, recovery.windows_a_step)
    if not math.isfinite(before):
        raise ValueError(
            f"recover={recovery.name}: the predictions of the compressed model are not finite"
        )

    with seeded(seed), trainable(recovery, model.model) as trained:
        student = Student(model, teacher, trained)
        train(student, recovery, tokens_NT, folder, seed, bf16)
        student.load_state_dict(load_file(folder / BEST))

    # what was gained in float32 may be lost in the model's type
    after = mean_divergence(model, teacher, held_out_NT, recovery.windows_a_step)
    better = after < before
    if not better:
        for name, parameter in model.model.named_parameters():
            parameter.data = start[name].to(parameter.device)
    summary = _summary(recovery, load_json(folder / HISTORY), better)
    return {"nats_before": before, "nats_after": min(before, after), **summary}


def _summary(recovery: Recovery, history: list[tuple[int, float]], better: bool) -> dict[str, Any]:
    """Return what the report says of the training.

    history: the steps with an evaluation, each with the held-out divergence after it.
    """
    by_tokens: list[tuple[int, float | None]] = []
    for step, nats in history:
        by_tokens.append((step * recovery.tokens_a_step, nats if math.isfinite(nats) else None))
    trained_tokens = by_tokens[-1][0]

    best = 0
    if better:
        _, best = min((nats, tokens) for tokens, nats in by_tokens if nats is not None)
    if best == 0:
        log.warning(
            "recover=%s: no step was better than the compressed model, which stays as it is",
            recovery.name,
        )
    stopped_early = history[-1][0] < recovery.steps
    if stopped_early:
        log.warning(
            "recover=%s: ended after %d of %d tokens, because it got no better; "
            "the weights after %d tokens are kept",
            recovery.name,
            trained_tokens,
            recovery.steps * recovery.tokens_a_step,
            best,
        )
    return {
        "choice": recovery.name,
        "tokens": trained_tokens,
        "best_after_tokens": best,
        "stopped_early": stopped_early,
        "nats_by_tokens": by_tokens,
    }
