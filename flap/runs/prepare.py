"""The preparation of a run: everything that needs no weights is made and checked before they are read."""

from pathlib import Path

from flap.checkpoint.save import check_room, check_target, followed, label_of
from flap.config import FlapConfig, require
from flap.evaluation import prepare_suite
from flap.evaluation.result_files import RESULTS
from flap.export.gguf import GGUFChanges, check_export, source_gguf
from flap.models import ModelAdapter, ModelSource, adapt, find_model
from flap.recovery import check_room_to_train
from flap.results import Report, described
from flap.results.configs import changes_of_the_model, differences
from flap.runs.checks import (
    check_budget,
    check_comparable,
    check_reloads,
    check_trainable,
)
from flap.runs.choices import Choices, choose
from flap.runs.dry_run import DryRun
from flap.runs.run import Run
from flap.runs.texts import read_texts
from flap.runs.trimming import check_vocabulary
from flap.storage import Cache, cache_root
from flap.storage.atomic_files import bytes_below, remove_leftovers
from flap.storage.work_folder import working_folder


def prepare(
    config: FlapConfig,
    run_dir: Path | None,
    source: ModelSource | None = None,
    begins: bool = False,
    keep_dense: bool = False,
) -> Run:
    """Return the run of a config: choices, windows, budget and tasks, all checked. Reads no weights.

    run_dir: None: the run has no folder. source: the model, if the caller has it. keep_dense: see `find_model`.
    begins: the run is to begin: its memory and the place of the checkpoint are checked, too.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    require(not config.dry_run, "dry_run", True, "false; only the command line prints what a run will take")
    choices, root = choose(config), cache_root(config.cache_dir)
    target = _target(config, run_dir, root)
    source = source or find_model(config.model, root, config.trust_remote_code, keep_dense)
    adapter = adapt(source.skeleton(), choices.structure.experts)
    check_vocabulary(choices, source, adapter)
    _check_saving(config, choices, source)
    results = run_dir and run_dir / RESULTS
    suite = prepare_suite(choices.evaluators, source.tokenizer, source.max_length, results)
    check_comparable(suite.comparisons, source)
    texts = read_texts(config, choices, source.tokenizer, source.max_length)
    budget = check_budget(adapter, choices, config, source)
    if choices.recovery is not None:
        check_trainable(choices.recovery, source, adapter)
    cache, report = Cache(root, config.use_cache, config.cache_wait_seconds), Report.start(described(config))
    run = Run(
        cache=cache, report=report, config=config, choices=choices, source=source, texts=texts, budget=budget,
        suite=suite, target=target, replaces_checkpoint=_replaces(config, target, results),
    )  # fmt: skip
    if begins:
        _check_room(run, adapter)
    return run


def _target(config: FlapConfig, run_dir: Path | None, root: Path) -> Path:
    """Return the folder of the checkpoint. root: that of the cache, for a run that saves none."""
    allowed = "a folder for the checkpoint, as this run has no folder of its own"
    require(bool(run_dir or config.checkpoint.dir or not config.checkpoint.save), "checkpoint.dir", None, allowed)
    return followed(Path(config.checkpoint.dir or (run_dir or root) / "checkpoint"))


def _check_saving(config: FlapConfig, choices: Choices, source: ModelSource) -> None:
    """Check that the result is saved where it is nowhere else, and that a GGUF can hold it if one is asked for.

    Raises:
        ValueError: it is not, or cannot.
    """
    allowed = f"true with model.placement={config.model.placement}, whose result is nowhere but on disk"
    require(config.checkpoint.save or not source.placed.streams, "checkpoint.save", False, allowed)
    if "gguf" in config.checkpoint.formats:
        gguf = None if choices.vocabulary else source_gguf(config.model.path)
        check_export(source.config, source.tokenizer, gguf, _changes(config, choices))


def _changes(config: FlapConfig, choices: Choices) -> GGUFChanges:
    """Return what pruning may do to the model, as far as a GGUF has to hold it."""
    if config.ratio == 0:
        return GGUFChanges()
    return GGUFChanges(
        widths=not choices.structure.layer_by_layer,
        biases=choices.compensation.adds_bias,
        heads=getattr(choices.structure, "remove_heads", None) != 0,
    )


def _replaces(config: FlapConfig, target: Path, results: Path | None) -> bool:
    """Return whether an existing checkpoint may be replaced.

    On request, if it is in the run's own folder, or if an earlier start of this run has written it, whose `results` are
    there.
    """
    if config.checkpoint.overwrite or config.checkpoint.dir is None:
        return True
    written = label_of(target).get("provenance", {}).get("config", {})
    ours = bool(results and (results.is_file() or results.with_name("report.json").is_file()))  # none with eval=none
    return ours and not changes_of_the_model(differences(written, described(config)))


def _check_room(run: Run, adapter: ModelAdapter) -> None:
    """Check that there is room for the run, and for its checkpoint a place that may be written.

    Raises:
        ValueError: there is none.
    """
    config, source, budget = run.config, run.source, run.budget
    if run.choices.recovery is not None:
        check_room_to_train(run.choices.recovery, adapter, budget.ratio, source.dtype, source.device)
    if config.checkpoint.save:
        check_reloads(source)
        remove_leftovers(run.target)
        check_target(run.target, run.replaces_checkpoint, Path(source.path) if source.path else None)
    left = working_folder(run.cache.root, run.keys.workspace)
    DryRun(config, run.choices, source, adapter, budget).check(run.cache.root, bytes_below(left))
    if config.checkpoint.save:
        removed = 0 if config.mask_only else budget.to_remove * source.dtype.itemsize
        # files of layers that an interrupted start has left become files of the checkpoint
        check_room(run.target, int(source.num_bytes - removed) - bytes_below(left / "layers"))
