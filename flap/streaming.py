"""Prune a model that stays on disk: one layer in memory at a time, once to decide and once to slice and write it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from flap.allocation import PruningPlan
from flap.cache import LABEL, digest
from flap.calibration import LayerStatistics, collect_streamed
from flap.checkpoint.load import stream
from flap.checkpoint.shards import check_room, save_streamed
from flap.importance import Scores, joined, score_layers
from flap.job import Job
from flap.models import ModelAdapter, Source, StreamedModel
from flap.pruning import prune_layer_by_layer, pruned_identity

Known = list[LayerStatistics | None]


def prune_streamed(
    job: Job, source: Source, model: StreamedModel, target: Path, overwrite: bool
) -> tuple[PruningPlan, StreamedModel]:
    """Calibrate, score and allocate in one pass over the layers; slice, compensate and write them in another one.

    Nothing but the checkpoint `target` is left, and returned beside the plan. A killed run leaves what it has finished
    to the next one of its config.

    Raises:
        ValueError: bad input, or a disk that is too small.
    """
    job.report.count_before(model.adapter, job.budget)
    check_room(target, _expected_bytes(job, model))
    with _work_folder(job) as folder:
        decide = _layer_by_layer if job.config.calibration.propagate == "pruned" else _at_once
        plan, known = decide(job, source.stream(), folder)

        def change_layer(adapter: ModelAdapter, i: int) -> None:
            job.compress_layer(adapter, i, plan.layers[i], job.stages.compensation, known[i])

        with job.report.timed("save"):  # slices and compensates on the way
            job.report.loads_with = save_streamed(
                model,
                source.stream(),
                source.tokenizer,
                target,
                plan,
                job.report.provenance,
                overwrite,
                change_layer=change_layer,
                becomes_another_class=job.budget.kept(plan) < job.budget.total,
                key=digest({**job.model_key, **pruned_identity(job.config, job.calibration, plan)}),
            )
    job.report.count_after(model.adapter, plan, job.budget, masked=job.config.mask_only)
    return plan, stream(target, model.device)


def _expected_bytes(job: Job, model: StreamedModel) -> int:
    """What the pruned weights take: known before the plan, to within one unit and the biases."""
    removed = 0 if job.config.mask_only else job.budget.to_remove
    return int(model.num_bytes - removed * model.model.dtype.itemsize)


def _at_once(job: Job, model: StreamedModel, folder: Path) -> tuple[PruningPlan, Known]:
    """Each layer is scored while it is in memory; where its statistics are known already, it is read for that alone."""
    scores: dict[int, Scores] = {}
    known: Known = [None for _ in model.layers]

    def score(i: int, one: LayerStatistics | None) -> None:
        scores[i] = score_layers(job.stages.metric, model.adapter, range(i, i + 1), [one])

    def collect() -> list[LayerStatistics]:
        collected = []
        for i, one in _calibrated(job, model, folder):
            score(i, one)
            collected.append(one)
        return collected

    if job.calibration is not None:
        with job.report.timed("calibrate"):
            known = list(job.statistics(model.device, collect))
    with job.report.timed("score"):
        for i in sorted(set(range(len(known))) - set(scores)):
            with model.layer(i):
                score(i, known[i])
    with job.report.timed("allocate"):
        plan = job.stages.structure.allocate(joined([scores[i] for i in sorted(scores)]), job.budget)
    return plan, known


def _layer_by_layer(job: Job, model: StreamedModel, folder: Path) -> tuple[PruningPlan, Known]:
    """Each layer is pruned in memory, for the next one to see; it is read and pruned again when it is written."""
    known: Known = []

    def calibrated() -> Iterator[tuple[int, LayerStatistics]]:
        for i, one in _calibrated(job, model, folder):
            known.append(one)
            yield i, one

    return prune_layer_by_layer(replace(job, adapter=model.adapter), calibrated()), known


def _calibrated(job: Job, model: StreamedModel, folder: Path) -> Iterator[tuple[int, LayerStatistics]]:
    assert job.calibration is not None
    options = job.config.calibration
    layers_change = options.propagate == "pruned"
    return collect_streamed(model, job.calibration.tokens_NT, options.batch_size, folder, layers_change)


@contextmanager
def _work_folder(job: Job) -> Iterator[Path]:
    """Where the first pass keeps what it has finished, under a key of all that it depends on, until the run is done.

    Another run that needs the same at the same time works in a folder of its own.
    """
    root, key = job.cache.root / "streams", _work_key(job)
    folder = root / digest(key)
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with TemporaryDirectory(dir=root) as own:
            yield Path(own)
        return
    with lock:
        if not job.config.resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / LABEL).write_text(json.dumps({"key": key}) + "\n")  # what `flap cache` shows
        try:
            yield folder
        except ValueError:  # bad input is no better the next time
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _work_key(job: Job) -> dict[str, object]:
    calibration, options = job.calibration, asdict(job.config)
    key = {**job.model_key, "batch_size": job.config.calibration.batch_size, **(calibration.key if calibration else {})}
    if job.config.calibration.propagate == "dense":
        return key
    deciding = ("metric", "structure", "compensation", "ratio", "mask_only")  # what the layers before become by
    return key | {name: options[name] for name in deciding}
