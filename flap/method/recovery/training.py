"""The training loop, transformers' Trainer, with evaluations on held-out windows and checkpoints to resume from.

Legend: N windows · T tokens a window.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from flap.config import one_line
from flap.data.counted import counted_predictions
from flap.method.recovery.base import Recovery
from flap.method.recovery.student import Student
from flap.storage.atomic_files import atomic_file, write_text
from flap.storage.json_files import read_json
from flap.storage.progress import progress
from flap.storage.ranks import by_first, on_first, size

CHECKPOINT_BYTES = (
    12  # of a trained parameter in Trainer's checkpoint: float32 values and two moments
)
BEST = "best.safetensors"
HISTORY = "history.json"


def train(
    student: Student, recovery: Recovery, tokens_NT: Tensor, folder: Path, seed: int, bf16: bool
) -> None:
    """Train; BEST in the folder then has the parameters with the lowest divergence, HISTORY the divergence by step.

    A killed training goes on from Trainer's last checkpoint in the folder, of which it reads tensors and numbers alone
    (`weights_only`); one that had finished is not repeated. bf16: layers compute in bfloat16 (autocast).
    """
    finished, last = on_first(lambda: ((folder / HISTORY).exists(), last_checkpoint(folder)))
    if finished:
        return
    device = student.placed.device
    batch_size = recovery.windows_a_step // size()
    every = recovery.steps_an_evaluation
    options = TrainingArguments(
        output_dir=str(folder), report_to="none", disable_tqdm=True, logging_strategy="no",
        logging_nan_inf_filter=False, use_cpu=device.type == "cpu", bf16=bf16, seed=seed, max_steps=recovery.steps,
        per_device_train_batch_size=batch_size, per_device_eval_batch_size=batch_size if size() == 1 else 1,
        eval_strategy="steps", eval_steps=every, eval_on_start=True, save_strategy="steps", save_steps=every,
        save_total_limit=1, label_names=["input_ids"], remove_unused_columns=False, dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda", train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    if options.n_gpu > 1:
        options._n_gpu = 1  # Trainer would copy the student to all GPUs, in threads of this process
    held_out_NT = tokens_NT[: recovery.held_out]
    fitting_NT = tokens_NT[recovery.held_out :]
    if (counted_P := counted_predictions(held_out_NT)) is not None:
        student.counted = float(counted_P.sum()) / len(held_out_NT)
    parts = (
        fitting_NT[: recovery.windows],
        held_out_NT,
    )  # Trainer would make a step of the rest, too
    sets = [[{"input_ids": tokens_T} for tokens_T in part] for part in parts]
    callbacks = [
        KeepBest(student, recovery.patience, folder / BEST),
        TrainingProgress(recovery.tokens_a_step),
    ]
    optimizer = AdamW(list(with_rates(student.trained, recovery)), weight_decay=0, fused=True)
    optimizers = optimizer, LambdaLR(optimizer, recovery.share_of_rate)
    trainer = Trainer(student, options, None, *sets, callbacks=callbacks, optimizers=optimizers)
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train(resume_from_checkpoint=last)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch raises its own error of a full disk
        if shutil.disk_usage(folder).free > CHECKPOINT_BYTES * sum(
            map(Tensor.numel, student.trained)
        ):
            raise
        raise OSError(
            f"{folder}: no room for the state of the training ({one_line(error, 120)})"
        ) from error
    by_first(write_text)(folder / HISTORY, json.dumps(list(history(trainer.state).items())))


def with_rates(trained: Iterable[nn.Parameter], recovery: Recovery) -> Iterator[dict[str, Any]]:
    """Yield the parameters with their learning rates.

    Weights have a share of their root mean square, as in Adafactor (Shazeer and Stern, arXiv 1804.04235, section 8):
    AdamW moves each element by about its rate, whatever the size of the gradient; typical weights are 0.2 in SmolLM2
    and 0.02 in Gemma 3. Low-rank updates begin at the same size in every model.
    """
    for parameter in trained:
        rate = recovery.learning_rate
        if recovery.rank is None:
            rate *= float(torch.linalg.vector_norm(parameter.detach())) / math.sqrt(
                max(1, parameter.numel())
            )
        yield {"params": [parameter], "lr": rate}


def last_checkpoint(folder: Path) -> str | None:
    """Return Trainer's last checkpoint that is complete: its state, which is written last, is whole."""
    complete = [
        file.parent for file in folder.glob("checkpoint-*/trainer_state.json") if read_json(file)
    ]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def history(state: Any) -> dict[int, float]:
    """Return the held-out divergence in nats a token after each step at which it was evaluated; 0: before training."""
    return {
        entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry
    }


class KeepBest(TrainerCallback):
    """Keep the best parameters, the compressed model's at first, and end a training that gets no better."""

    def __init__(self, student: Student, patience: int, path: Path) -> None:
        self.student = student
        self.patience = patience
        self.path = path

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge by the whole history, which Trainer's checkpoints have, so that a resumed training ends as it would."""
        nats = {
            step: value if math.isfinite(value) else math.inf
            for step, value in history(state).items()
        }
        best = min(nats, key=lambda step: nats[step])
        if best == state.global_step and state.is_world_process_zero:
            with atomic_file(self.path) as scratch:
                save_file(self.student.state_dict(), scratch)
        waited = sum(step > best for step in nats)
        if waited >= self.patience or math.isinf(nats[state.global_step]):
            control.should_training_stop = True


class TrainingProgress(TrainerCallback):
    """Draw this program's own progress bar."""

    def __init__(self, tokens_a_step: int) -> None:
        self.tokens_a_step = tokens_a_step
        self.steps: Iterator[int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin, after the first evaluation, at the step that a resumed training goes on from."""
        if self.steps is None and state.is_world_process_zero:
            self.steps = progress(
                range(state.global_step, state.max_steps), "recover", lambda _: self.tokens_a_step
            )
            next(self.steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        next(self.steps or iter(()), None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away, also where training has ended early."""
        self.steps = None
