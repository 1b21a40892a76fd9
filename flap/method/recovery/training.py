"""The training loop, which uses transformers' Trainer and evaluates on held-out windows.

An interrupted training resumes from the checkpoints that Trainer writes. The student is the
compressed model, and the dense model is the model before compression. The student is not trained on
the held-out windows. The held-out divergence is the divergence KL(dense ‖ student) of the
predictions on the held-out windows.

Legend of tensor suffixes: N: windows · T: tokens in a window · P: positions of all held-out
windows.
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
from flap.data import Batch
from flap.method.recovery.base import Recovery
from flap.method.recovery.student import Student
from flap.runtime.progress import progress
from flap.runtime.ranks import by_first, on_first, size
from flap.storage.atomic_files import atomic_file, write_text
from flap.storage.json_files import read_json

# Bytes in Trainer's checkpoint for each element of the trained parameters: the element itself and
# AdamW's two moments, all in float32.
CHECKPOINT_BYTES = 12
BEST = "best.safetensors"
HISTORY = "history.json"


def train(
    student: Student, recovery: Recovery, windows: Batch, folder: Path, seed: int, bf16: bool
) -> None:
    """Train the parameters of a student.

    After the training, the file BEST in the folder contains the parameters with the lowest held-out
    divergence, and the file HISTORY contains the held-out divergence that each evaluation measured.
    A killed training resumes from Trainer's last checkpoint in the folder. Trainer reads the
    checkpoint with `weights_only`, so that a manipulated checkpoint cannot run code. If the file
    HISTORY exists, the training was finished before, and is not repeated.

    windows: the training windows; the held-out windows come first.
    bf16: whether the forward pass computes in bfloat16 (autocast).
    """
    finished, last = on_first(lambda: ((folder / HISTORY).exists(), last_checkpoint(folder)))
    if finished:
        return
    arguments = _arguments(recovery, folder, student.placed.device, seed, bf16)
    trainer = _trainer(student, recovery, windows, arguments)
    try:
        trainer.train(resume_from_checkpoint=last)
    except (OSError, RuntimeError, SafetensorError) as error:
        # on a full disk, torch raises a RuntimeError, so check whether enough space is free
        needed = CHECKPOINT_BYTES * sum(map(Tensor.numel, student.trained))
        if shutil.disk_usage(folder).free > needed:
            raise
        reason = one_line(error, 120)
        raise OSError(f"{folder}: no space for the state of the training ({reason})") from error
    nats_by_step = list(history(trainer.state).items())
    by_first(write_text)(folder / HISTORY, json.dumps(nats_by_step))


def _trainer(
    student: Student, recovery: Recovery, windows: Batch, arguments: TrainingArguments
) -> Trainer:
    """Build the Trainer. In `windows`, the held-out windows come first."""
    held_out = windows[: recovery.held_out]
    fitting = windows[recovery.held_out :]
    judged_P = held_out.predicted_P
    if judged_P is not None:
        student.judged_positions = float(judged_P.sum()) / len(held_out)

    optimizer = AdamW(list(with_rates(student.trained, recovery)), weight_decay=0, fused=True)
    best = Path(arguments.output_dir) / BEST
    trainer = Trainer(
        student,
        arguments,
        # leave out the last windows if they do not fill a step, because Trainer would make a
        # smaller step of them
        train_dataset=_student_inputs(fitting[: recovery.windows]),
        eval_dataset=_student_inputs(held_out),
        callbacks=[
            KeepBest(student, recovery.patience, best),
            TrainingProgress(recovery.tokens_a_step),
        ],
        optimizers=(optimizer, LambdaLR(optimizer, recovery.share_of_rate)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _student_inputs(windows: Batch) -> list[dict[str, Tensor]]:
    pairs = zip(windows.tokens_NT, windows.mask_NT, strict=True)
    return [{"input_ids": tokens_T, "token_mask": mask_T} for tokens_T, mask_T in pairs]


def _arguments(
    recovery: Recovery, folder: Path, device: torch.device, seed: int, bf16: bool
) -> TrainingArguments:
    batch_size = recovery.windows_a_step // size()
    every = recovery.steps_an_evaluation
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        use_cpu=device.type == "cpu",
        bf16=bf16,
        seed=seed,
        max_steps=recovery.steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size if size() == 1 else 1,
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        label_names=["input_ids"],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        train_sampling_strategy="sequential",
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        # without this line, Trainer would copy the student to all GPUs, and run the copies in
        # threads
        arguments._n_gpu = 1
    return arguments


def with_rates(trained: Iterable[nn.Parameter], recovery: Recovery) -> Iterator[dict[str, Any]]:
    """Yield each trained parameter and its learning rate, as a parameter group of AdamW.

    The learning rate of a tensor is proportional to the tensor's root mean square, as in Adafactor
    (Shazeer and Stern, arXiv 1804.04235, section 8). The reason is that AdamW moves each element by
    about the learning rate, however small or large the gradient is. Typical weights have a
    magnitude of 0.2 in SmolLM2, and of 0.02 in Gemma 3. So with the same learning rate in both
    models, the weights of Gemma 3 would change ten times as much relative to their magnitude. For
    low-rank updates, the learning rate is `recovery.learning_rate` itself, because the updates
    begin with the same magnitude in every model.
    """
    for parameter in trained:
        rate = recovery.learning_rate
        if recovery.rank is None:
            norm = float(torch.linalg.vector_norm(parameter.detach()))
            rate *= norm / math.sqrt(max(1, parameter.numel()))
        yield {"params": [parameter], "lr": rate}


def last_checkpoint(folder: Path) -> str | None:
    """Return the folder of Trainer's last complete checkpoint, or None if there is none.

    A checkpoint with a trainer_state.json is complete, because Trainer writes this file last.
    """
    states = folder.glob("checkpoint-*/trainer_state.json")
    complete = [state.parent for state in states if read_json(state)]
    if not complete:
        return None
    return str(max(complete, key=lambda path: int(path.name.split("-")[1])))


def history(state: Any) -> dict[int, float]:
    """Return the held-out divergence that each evaluation measured, in nats per token.

    The keys are the numbers of finished steps; the value at 0 was measured before the training.

    state: Trainer's state.
    """
    return {
        entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry
    }


class KeepBest(TrainerCallback):
    """Save the best parameters, and stop a training that no longer improves the model.

    The best parameters are those with the lowest held-out divergence of all evaluations so far. The
    first evaluation measures the parameters before training.

    path: the file in which the best parameters are saved.
    """

    def __init__(self, student: Student, patience: int, path: Path) -> None:
        self.student = student
        self.patience = patience
        self.path = path

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the parameters if they are the best so far, and decide whether the training stops.

        The training stops if the last `patience` evaluations measured no new lowest divergence, or
        if the divergence is not finite. The decision uses all evaluations in Trainer's state. This
        state is stored in checkpoints, so a resumed training ends at the same step as an
        uninterrupted training.
        """
        nats = {}
        for step, value in history(state).items():
            nats[step] = value if math.isfinite(value) else math.inf
        best = min(nats, key=lambda step: nats[step])
        if best == state.global_step and state.is_world_process_zero:
            with atomic_file(self.path) as scratch:
                save_file(self.student.state_dict(), scratch)
        waited = sum(step > best for step in nats)
        if waited >= self.patience or math.isinf(nats[state.global_step]):
            control.should_training_stop = True


class TrainingProgress(TrainerCallback):
    """Show the progress of the training in flap's progress bar."""

    def __init__(self, tokens_a_step: int) -> None:
        self.tokens_a_step = tokens_a_step
        self.steps: Iterator[int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar at the first step, or at the step where an interrupted training resumes."""
        if self.steps is None and state.is_world_process_zero:
            self.steps = progress(
                range(state.global_step, state.max_steps), "recover", lambda _: self.tokens_a_step
            )
            next(self.steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar by one step."""
        next(self.steps or iter(()), None)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove the bar, even if training has ended early."""
        self.steps = None
