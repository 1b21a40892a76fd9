"""The preparation of a run: everything that needs no weights is made and checked before they are read."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flap.allocation import Budget, price
from flap.checkpoint.save import check_room, check_target
from flap.config import FlapConfig, build, require
from flap.data import begins_with_bos, calibration_windows, read_text
from flap.evaluation import Task, prepare_suite
from flap.export.gguf import check_export, source_gguf
from flap.forecast import Forecast
from flap.job import Choices, Job, Windows
from flap.models import Given, ModelAdapter, Source, adapt, find_architecture, find_model
from flap.storage import Cache, cache_root
from flap.storage.files import remove_leftovers


def prepare(
    config: FlapConfig, run_dir: Path | None, source: Source | Given | None = None, will_save: bool = True
) -> Job:
    """Return the job of a config: choices, windows, budget and tasks, all checked. Reads no weights.

    source: the model, if the caller has it already. will_save: the run will begin, so that its memory and the place of
    the checkpoint are checked, too.

    Raises:
        ValueError: bad input, in one line that names the field.
    """
    require(not config.dry_run, "dry_run", True, "false; only the command line prints what a run will take")
    choices, run_dir = choose(config), run_dir or Path()
    target = Path(config.checkpoint.dir or run_dir / "checkpoint")
    root = cache_root(config.cache_dir)
    source = source or find_model(config.model, root, config.trust_remote_code)
    require(
        config.checkpoint.save or not source.on_disk,
        "checkpoint.save",
        False,
        f"true with model.placement={config.model.placement}, whose result is nowhere but on disk",
    )
    if "gguf" in config.checkpoint.formats:
        uniform = (choices.structure.layer_by_layer and not choices.compensation.adds_bias) or config.ratio == 0
        check_export(source.config, source.tokenizer, source_gguf(config.model.path), uniform)
    results = run_dir / "evaluation.json"
    if not config.resume:
        results.unlink(missing_ok=True)  # without resume, numbers of an earlier start are not used
    suite = prepare_suite(choices.evaluators, source.tokenizer, source.max_length, results)
    windows = read_windows(config, choices, source.tokenizer, source.max_length)
    adapter = adapt(source.skeleton())
    budget = check_budget(adapter, choices, config)
    if will_save:
        Forecast.of(config, choices, source, adapter).check()
    cache = Cache(root, config.use_cache, config.cache_wait_seconds)
    job = Job(config, choices, source, windows, budget, suite, cache, target)
    if config.checkpoint.save and will_save:
        remove_leftovers(target)
        check_target(target, job.replaces_checkpoint, Path(source.path) if source.path else None)
        removed = 0 if config.mask_only else budget.to_remove * source.dtype.itemsize
        check_room(target, int(source.num_bytes - removed))
    return job


def forecast(config: FlapConfig) -> Forecast:
    """Return what a run of this config will take. Needs nothing of the model but its config, and no text.

    Raises:
        ValueError: bad input, as far as it can be seen from that; names the field.
    """
    choices, model = choose(config), find_architecture(config.model, config.trust_remote_code)
    if choices.need_windows:
        _check_context(config, model.max_length)
    adapter = adapt(model.skeleton())
    check_budget(adapter, choices, config)
    return Forecast.of(config, choices, model, adapter)


def choose(config: FlapConfig) -> Choices:
    """Return the choices of a config as objects.

    Raises:
        ValueError: an option of a choice is out of range, or two choices cannot be combined.
    """
    choices = Choices(
        build("metric", config.metric),
        build("structure", config.structure),
        build("compensation", config.compensation),
        [build(f"eval.{name}", node) for name, node in (config.eval or {}).items()],
        config.calibration.propagate,
    )
    if choices.propagate == "pruned" and not choices.structure.layer_by_layer:
        raise ValueError(
            "calibration.propagate=pruned: expected structure=UL-UM or UL-MM, because an adaptive plan is known only "
            "after every layer has its statistics"
        )
    if choices.structure.ranks_errors:
        _check_errors(choices)
    require(
        config.calibration.num_samples >= 2 or not choices.need_covariance,
        "calibration.num_samples",
        config.calibration.num_samples,
        "at least 2, because what is fitted on some windows is judged on others",
    )
    return choices


def _check_errors(choices: Choices) -> None:
    """Check that the metric's scores are squared output errors, for a structure that ranks those.

    Raises:
        ValueError: they are not.
    """
    scale = f"structure.scale={getattr(choices.structure, 'scale', '')}"
    if not choices.metric.measures_error:
        raise ValueError(
            f"{scale}: expected metric=WIFV or metric=OBS, whose scores are output errors, or structure.scale=z-score"
        )
    if choices.metric.square_attention:
        raise ValueError(
            f"metric.square_attention=true: squares of errors are no errors; set metric.square_attention=false with "
            f"{scale}"
        )


def read_windows(
    config: FlapConfig, choices: Choices, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Windows | None:
    """Return the calibration windows; None if no choice needs any.

    Raises:
        ValueError: there is no such text, it has too few tokens, or the windows are longer than the model's context.
    """
    if not choices.need_windows:
        return None
    options = config.calibration
    _check_context(config, max_length)
    text = read_text(options.dataset, "calibration", "calibration.dataset")
    bos = begins_with_bos(tokenizer, options.bos, "calibration.bos")
    tokens_NT = calibration_windows(text, tokenizer, options.num_samples, options.seq_len, config.seed, bos)
    return Windows(tokens_NT, text, config.seed, bos)


def _check_context(config: FlapConfig, max_length: int | None) -> None:
    """Check that the calibration windows fit the model's context.

    Raises:
        ValueError: they do not.
    """
    seq_len = config.calibration.seq_len
    if max_length is not None and seq_len > max_length:
        raise ValueError(f"calibration.seq_len={seq_len}: the model's context ends at {max_length} tokens")


def check_budget(adapter: ModelAdapter, choices: Choices, config: FlapConfig) -> Budget:
    """Return the budget, counted from the tensors.

    Raises:
        ValueError: the ratio or a choice does not fit this model.
    """
    budget = price(adapter, config.ratio)
    choices.structure.check(budget)
    return budget


def overlaps(windows: Windows | None, tasks: Sequence[Task]) -> list[str]:
    """Return warnings about tasks that are measured on the calibration text or on documents from it."""
    if windows is None:
        return []
    warnings = []
    for task in tasks:
        if task.text_sha256 == windows.text.sha256:
            warnings.append(f"{task.name} is measured on the calibration text itself")
        elif windows.text.name in task.shares_text_with:
            warnings.append(f"{task.name} is measured on documents that {windows.text.name} is made of, too")
    return warnings
