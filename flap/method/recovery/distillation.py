"""Distillation: train the compressed (pruned) model to predict what the dense model predicts.

Source: Hinton et al., arXiv 1503.02531.

The dense model is the model before pruning. The training texts are cut into token windows. Some
windows are held out: the compressed model is not trained on them. The held-out divergence says how
far the compressed model's predictions on the held-out windows are from the dense model's
predictions (`mean_divergence`).

Legend of tensor suffixes: N: windows · T: tokens in a window.
"""

import logging
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flap.data import Batch, Windows, split_windows
from flap.data.batch import judged
from flap.data.overlap import OVERLAP
from flap.data.text import ngrams
from flap.method.recovery.base import Recovery
from flap.method.recovery.student import Student, mean_divergence
from flap.method.recovery.teacher import Teacher
from flap.method.recovery.trainable import trainable
from flap.method.recovery.training import BEST, HISTORY, train
from flap.models import PlacedModel
from flap.runtime.temporary_state import seeded
from flap.storage import load_json

log = logging.getLogger(__name__)


W = TypeVar("W", Tensor, Batch)


def training_windows(
    recovery: Recovery, windows: Windows, by_pruned: Windows | None = None
) -> Batch:
    """Return one batch with the held-out windows first, and then the windows to train on.

    The number of held-out windows is `recovery.held_out`. In these windows, the mask is true for
    the tokens on which the held-out divergence is measured: the tokens of answers to prompts, or
    all tokens if the windows contain too few tokens of answers (`judged`).

    windows: windows of the training texts. `windows.asked` lists the texts that consist of prompts
        with answers of the dense model.
    by_pruned: windows of the same texts with the pruned model's answers; None with
        recover.writer=dense. They replace windows to train on that come from the texts in
        `windows.asked`: all with recover.writer=pruned, every second one of each text with `both`.
    """
    held_out = recovery.held_out
    batch = _held_out_first(recovery, windows.batch)
    in_answers = _held_out_first(recovery, windows.in_answers)
    text_N = _held_out_first(recovery, windows.text_N)
    tokens_NT = batch.tokens_NT.clone()
    mask_NT = batch.mask_NT.clone()

    # 1. set the mask of held-out windows: true for the tokens on which the divergence is measured
    has_answers = torch.tensor([bool(text and text.counted) for text in windows.texts])
    has_answers_N1 = has_answers[text_N[:held_out], None]
    of_answers_NT = in_answers.mask_NT[:held_out] & has_answers_N1
    held_out_windows = Batch(tokens_NT[:held_out], of_answers_NT)
    mask_NT[:held_out] = judged(held_out_windows, torch.zeros(held_out)).mask_NT

    # 2. replace windows to train on with windows that contain the pruned model's answers
    if by_pruned is not None:
        of_pruned = _held_out_first(recovery, by_pruned.batch)
        step = 2 if recovery.writer == "both" else 1
        for part in windows.asked:
            of_part = (text_N[held_out:] == part).nonzero().flatten()
            taken = held_out + of_part[::step]
            tokens_NT[taken] = of_pruned.tokens_NT[taken]
            unseen_NT = _unseen(of_pruned.tokens_NT[taken], tokens_NT[:held_out])
            mask_NT[taken] = of_pruned.mask_NT[taken] & unseen_NT
    return Batch(tokens_NT, mask_NT)


def _unseen(tokens_NT: Tensor, held_out_NT: Tensor) -> Tensor:
    """Return a mask of tokens_NT, which is false for tokens that repeat a passage of held_out_NT.

    A token repeats a passage if it is the last of OVERLAP successive tokens that also occur, in the
    same order, in a held-out window.
    """
    seen = {run for row in held_out_NT.tolist() for run in ngrams(row, OVERLAP)}
    mask_NT = torch.ones_like(tokens_NT, dtype=torch.bool)
    for mask_T, row in zip(mask_NT, tokens_NT.tolist(), strict=True):
        runs = ngrams(row, OVERLAP)
        ends = [end for end, run in enumerate(runs, OVERLAP - 1) if run in seen]
        mask_T[ends] = False
    return mask_NT


def _held_out_first(recovery: Recovery, windows: W) -> W:
    """Return the same windows, sorted so that the held-out windows come first.

    If `recovery.use` is "recovery", the first windows are held out, so the order does not change.
    If it is "calibration", every fifth window is held out, and these windows move to the front.
    """
    if recovery.use == "recovery":
        return windows
    fitting, held_out = split_windows(torch.arange(len(windows)))
    return windows[torch.cat([held_out, fitting])]


def distil(
    recovery: Recovery,
    model: PlacedModel,
    teacher: Teacher,
    windows: Batch,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Train the compressed model in place, and return the entries for the run's report.

    The model gets its old weights back if training does not lower the held-out divergence.

    teacher: the dense model.
    windows: the result of `training_windows`.
    folder: the working directory, from which an interrupted training resumes.

    Raises:
        ValueError: the predictions of the compressed model are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = windows[: recovery.held_out]
    bf16 = model.model.dtype == torch.bfloat16
    start = {name: parameter.detach().cpu() for name, parameter in model.model.named_parameters()}
    before = mean_divergence(model, teacher, held_out, recovery.windows_a_step)
    if not math.isfinite(before):
        wrong = "the predictions of the compressed model are not finite"
        raise ValueError(f"recover={recovery.name}: {wrong}")

    with seeded(seed), trainable(recovery, model.model) as trained:
        student = Student(model, teacher, trained)
        train(student, recovery, windows, folder, seed, bf16)
        student.load_state_dict(load_file(folder / BEST))

    # measure again, because rounding the weights to the model's dtype may undo an improvement
    after = mean_divergence(model, teacher, held_out, recovery.windows_a_step)
    better = after < before
    if not better:
        _put_back(model.model, start)
    summary = _summary(recovery, load_json(folder / HISTORY), better)
    return {"nats_before": before, "nats_after": min(before, after)} | summary


def _put_back(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = values[name].to(parameter.device)


def _summary(recovery: Recovery, history: list[tuple[int, float]], better: bool) -> dict[str, Any]:
    """Return the entries about the training in the run's report, such as the number of tokens.

    history: for each evaluation, the number of finished steps, and the held-out divergence that was
        measured after these steps.
    better: whether training has lowered the held-out divergence.
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
            "recover=%s: training did not improve the compressed model, which stays unchanged",
            recovery.name,
        )
    stopped_early = history[-1][0] < recovery.steps
    if stopped_early:
        log.warning(
            "recover=%s: ended after %d of %d tokens, because it no longer improved; "
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
