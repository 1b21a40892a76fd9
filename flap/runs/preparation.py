"""Prepare a run: build and check everything that needs no weights, in all processes of the run.

`python -m flap` may be invoked several times for the same run, for example again after an
interruption. A later invocation uses the results that an earlier invocation has stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flap.checkpoint.save import check_disk_space, check_target, label_of
from flap.config import FlapConfig, refuse, require
from flap.data import Windows
from flap.evaluation import Task, prepare_tasks
from flap.evaluation.left_out import without_read
from flap.evaluation.result_files import RESULTS, Results
from flap.models import ModelAdapter, ModelSource, adapt, find_model
from flap.models.gguf_file import find_gguf
from flap.results import device_name
from flap.runs import keys
from flap.runs.choices import Choices, choose
from flap.runs.dry_run import DryRun
from flap.runs.kept_inputs import check_inputs_stay
from flap.runs.run import Run
from flap.runs.texts import documents_read, read_texts, without_effect
from flap.runs.trimming import budget_after_trimming
from flap.runtime import ranks
from flap.storage import Cache, cache_root, digest
from flap.storage.atomic_files import bytes_below, remove_leftovers
from flap.storage.work_folder import working_folder


def prepare(
    config: FlapConfig,
    run_dir: Path | None,
    source: ModelSource | None = None,
    overrides: Sequence[str] = (),
) -> Run:
    """Build a run from its config, without reading weights.

    The choices (the chosen options of the config groups), the calibration windows, the budget
    (number of parameters to remove) and the evaluation tasks of the run are checked.

    run_dir: the run's folder; None if the run has no folder.
    source: the model, if the caller has already loaded it.
    overrides: the options that the user typed, as "key=value". An option that has no effect in this
        run is an error.

    Raises:
        ValueError: an input is wrong. The message is one line that names the config field.
    """
    run = ranks.agreed(partial(_prepare, config, run_dir, source, overrides))
    if ranks.size() > 1:
        run = ranks.agreed(partial(_alike, run))
    return replace(run, key=digest(keys.of_the_run(run)))


def _prepare(
    config: FlapConfig,
    run_dir: Path | None,
    source: ModelSource | None,
    overrides: Sequence[str],
) -> Run:
    allowed = "false; only the command line prints the estimate of a run"
    require(not config.dry_run, "dry_run", True, allowed)
    choices = choose(config)
    checkpoint = config.checkpoint
    allowed = "a folder for the checkpoint, as this run has no folder of its own"
    has_place = run_dir or checkpoint.dir or not checkpoint.save
    require(bool(has_place), "checkpoint.dir", None, allowed)

    cache = Cache(cache_root(config.cache_dir), config.use_cache, config.cache_wait_seconds)
    source = source or find_model(config.model, cache.root, config.trust_remote_code)
    adapter = adapt(source.skeleton(), choices.experts)
    tasks = prepare_tasks(choices.evaluators, source.tokenizer, source.max_length)
    _check_model(choices, checkpoint.save, tasks, source, adapter)

    texts = read_texts(choices, source)
    tasks = without_read(tasks, documents_read(texts))
    budget, _ = budget_after_trimming(choices, source, adapter, texts)
    refuse(overrides, _without_effect(choices, texts, config.model.path))
    return Run(
        config=config,
        choices=choices,
        cache=cache,
        source=source,
        texts=texts,
        budget=budget,
        tasks=tasks,
        run_dir=run_dir,
        results=Results(run_dir and run_dir / RESULTS),
    )


def _check_model(
    choices: Choices,
    saved: bool,
    tasks: Sequence[Task],
    source: ModelSource,
    adapter: ModelAdapter,
) -> None:
    """Check that the options for saving, evaluation and training suit `model.placement`.

    If the caller has loaded the model, fewer options are allowed, because pruning changes the
    caller's model in place.

    saved: whether the run saves a checkpoint.
    """
    placed = source.placed
    allowed = f"true with model.placement={source.placement}, whose result exists only on disk"
    require(saved or not placed.streams, "checkpoint.save", False, allowed)

    is_there_again = placed.whole or not source.loaded
    allowed = "none: a model spread over devices is pruned in place and cannot be compared"
    for task in tasks:
        require(is_there_again or not task.side_by_side, "eval", task.name, allowed)

    recovery = choices.recovery
    if recovery is not None:
        allowed = (
            "none: flap.prune changes the loaded model in place, so no dense model is left as a "
            "teacher"
        )
        require(not source.loaded, "recover", recovery.name, allowed)
        allowed = f"device with recover={recovery.name}, which trains the whole model there"
        require(placed.whole, "model.placement", source.placement, allowed)
        recovery.check(adapter)


def _without_effect(
    choices: Choices, texts: Mapping[str, Windows], model_path: str
) -> dict[str, str]:
    """Return the options that have no effect in this run, each with the reason."""
    settled = without_effect(choices.calibration, texts)
    if choices.vocabulary is not None:
        settled |= choices.vocabulary.without_effect
    if find_gguf(model_path) is None:
        settled["model.tie_copied_head"] = "this model is not read from a GGUF"
    return settled


def in_folder(run: Run, folder: Path) -> Run:
    """Return a copy of the run that writes results into `folder`, and reads them from there."""
    return replace(run, run_dir=folder, results=Results(folder / RESULTS))


def may_replace_checkpoint(run: Run) -> bool:
    """Return whether the run may replace a checkpoint that already exists in `run.target`.

    The run may replace a checkpoint if checkpoint.overwrite=true, if the checkpoint is in the run's
    folder, or if an earlier invocation of the run has written the checkpoint.
    """
    if run.config.checkpoint.overwrite or run.config.checkpoint.dir is None:
        return True
    return label_of(run.target).get("key") == run.key


def check_room_to_make(run: Run) -> None:
    """Check that memory and disk space are sufficient for making the pruned model.

    If the run saves a checkpoint, also check that the checkpoint can be written.

    Raises:
        ValueError: memory or disk space is too small, or the checkpoint cannot be written.
    """
    ranks.agreed(partial(_check_room, run))


def _check_room(run: Run) -> None:
    source = run.source
    budget = run.budget
    # the working directory, which still has files if an earlier invocation was interrupted
    left = working_folder(run.cache.root, keys.workspace(run))
    adapter = adapt(source.skeleton(), run.choices.experts)
    processes = max(1, len(run.processes))
    estimate = DryRun(run.choices, source, adapter, budget, run.cache, processes)
    estimate.check(bytes_below(left))
    if not run.config.checkpoint.save:
        return

    _check_reloads(source)
    remove_leftovers(run.target)
    model = Path(source.path) if source.path else None
    check_target(run.target, may_replace_checkpoint(run), model)
    check_inputs_stay(run.config, run.target)
    num_bytes = source.num_bytes
    if not run.choices.mask_only:
        num_bytes -= int(budget.to_remove * source.dtype.itemsize)
    # An interrupted invocation of the run may already have written the files of some pruned layers.
    # These files will become files of the checkpoint, and need no additional space.
    check_disk_space(run.target, num_bytes - bytes_below(left / "layers"))


def _check_reloads(source: ModelSource) -> None:
    """Check that the RoPE frequencies of a model that the caller has loaded are in float32.

    Checkpoints do not contain these frequencies, and a reloaded model computes them in float32. If
    the caller's model has rounded frequencies, for example after `model.to(dtype)`, the reloaded
    checkpoint would give different logits.
    """
    buffers = source.skeleton().named_buffers() if source.loaded else ()
    if any(name.endswith("inv_freq") and buffer.itemsize < 4 for name, buffer in buffers):
        raise ValueError(
            "model: its rotary frequencies are rounded, as by model.to(dtype), so a "
            "checkpoint would compute something "
            "else; expected one from from_pretrained(dtype=…), or checkpoint.save=false"
        )


def _alike(run: Run) -> Run:
    """Check that all processes have the same inputs, and return the run with `processes` set.

    Also check that every process gets at least one calibration window.

    Raises:
        ValueError: the inputs differ (the message names the first process whose inputs differ from
            the inputs of rank 0); several processes cannot be used with this `model.placement`; or
            there are fewer calibration windows than processes.
    """
    source = run.source
    own = (ranks.name(), device_name(source.device), _contents(run))
    everywhere = ranks.gather(own)
    first, _, expected = everywhere[0]
    for name, _, contents in everywhere:
        differing = sorted(dict(contents.items() ^ expected.items()))
        if differing:
            raise ValueError(f"{name}: {', '.join(differing)} is not as on {first}")

    valid = source.placed.whole or source.placed.streams
    allowed = "device or stream with several processes"
    require(valid, "model.placement", source.placement, allowed)
    if run.choices.need_windows:
        samples = run.choices.calibration.num_samples
        allowed = f"{len(everywhere)} windows or more, one for each process"
        require(samples >= len(everywhere), "calibration.num_samples", samples, allowed)
    return replace(run, processes=[f"{name}: {device}" for name, device, _ in everywhere])


def _contents(run: Run) -> dict[str, str]:
    """Return a digest of each input that must be the same in all processes.

    The keys describe the inputs for error messages.
    """
    model = dict(run.source.fingerprint)
    # leave out these two entries, which may differ between machines although the model is the same
    for name in ("commit", "files"):
        model.pop(name, None)
    contents = {"the config": digest(run.described), "the model": digest(model)}
    for name, value in keys.inputs(run).items():
        if name != "model":
            contents[f"the content of {name}"] = value
    for task in run.tasks:
        contents[f"the content of {task.name}"] = digest([task.origin, task.text_sha256])
    return contents
