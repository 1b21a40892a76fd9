"""The preparation of a run: everything that needs no weights is made and checked before they are read."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flap.allocation import Biases, Budget, bounds_of_shapes, price
from flap.calibration.windows import check_context, read_windows
from flap.checkpoint.save import check_room, check_target
from flap.checkpoint.stock import takes_output_biases
from flap.config import FlapConfig, build, in_time, require, targets
from flap.data import Windows
from flap.evaluation import Task, prepare_suite
from flap.evaluation.results import RESULTS
from flap.export.gguf import check_export, source_gguf
from flap.forecast import Forecast
from flap.job import Choices, Job
from flap.models import (
    Architecture,
    Given,
    ModelAdapter,
    Source,
    adapt,
    find_architecture,
    find_model,
    may_lose_all_heads,
)
from flap.recovery import Recovery, check_room_to_train, recovery_windows
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
    results = run_dir / RESULTS
    if not config.resume:
        results.unlink(missing_ok=True)  # without resume, numbers of an earlier start are not used
    suite = prepare_suite(choices.evaluators, source.tokenizer, source.max_length, results)
    texts = read_texts(config, choices, source.tokenizer, source.max_length)
    adapter = adapt(source.skeleton(), choices.structure.experts)
    budget = check_budget(adapter, choices, config, source)
    if choices.recovery is not None:
        check_trainable(choices.recovery, source, adapter)
    if in_time(config.target):
        check_timed(config, choices, source)
    if will_save:
        if choices.recovery is not None:
            check_room_to_train(choices.recovery, adapter, budget.ratio, source.dtype, source.device)
        Forecast.of(config, choices, source, adapter, budget.ratio).check()
    cache = Cache(root, config.use_cache, config.cache_wait_seconds)
    job = Job(config, choices, source, texts, budget, suite, cache, target)
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
        check_context("calibration", config.calibration.lengths, model.max_length)
    adapter = adapt(model.skeleton(), choices.structure.experts)
    budget = check_budget(adapter, choices, config, model)
    return Forecast.of(config, choices, model, adapter, budget.ratio)


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
        build("recover", config.recover) if config.recover else None,
    )
    if choices.recovery is not None:
        _check_recovery(config, choices.recovery)
    if choices.propagate == "pruned" and not choices.structure.layer_by_layer:
        raise ValueError(
            "calibration.propagate=pruned: expected structure=UL-UM or UL-MM, because an adaptive plan is known only "
            "after every layer has its statistics"
        )
    if choices.structure.ranks_errors:
        _check_errors(choices)
    allowed = "false with structure.experts=true, as a router cannot be masked"
    require(not (config.mask_only and choices.structure.experts), "mask_only", True, allowed)
    require(
        config.calibration.num_samples >= 2 or not choices.need_covariance,
        "calibration.num_samples",
        config.calibration.num_samples,
        "at least 2, because what is fitted on some windows is judged on others",
    )
    return choices


def _check_recovery(config: FlapConfig, recovery: Recovery) -> None:
    """Check that training can be combined with the other options.

    Raises:
        ValueError: it cannot.
    """
    placement = f"device with recover={recovery.name}, which trains the whole model there"
    require(config.model.placement == "device", "model.placement", config.model.placement, placement)
    masked = f"false with recover={recovery.name}, which would train the masked units, too"
    require(not config.mask_only, "mask_only", True, masked)


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


def read_texts(
    config: FlapConfig, choices: Choices, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, Windows]:
    """Return the windows of calibration and of recovery, as far as a choice needs them.

    Raises:
        ValueError: there is no such text, it is too short, or windows are longer than the model's context.
    """
    texts, own = {}, config.calibration
    if choices.need_windows:
        sizes = own.num_samples, own.lengths, config.seed, own.bos, max_length
        texts["calibration"] = read_windows("calibration", own.dataset, tokenizer, *sizes)
    if choices.recovery is not None:
        texts["recovery"] = recovery_windows(choices.recovery, tokenizer, max_length, own.bos, config.seed)
    return texts


def check_trainable(recovery: Recovery, source: Source | Given, adapter: ModelAdapter) -> None:
    """Check that the model can be trained after compression.

    Raises:
        ValueError: it cannot.
    """
    given = "none for a model that the caller has loaded, of which pruning leaves no dense one to learn from"
    require(not isinstance(source, Given), "recover", recovery.name, given)
    recovery.check(adapter)


def check_timed(config: FlapConfig, choices: Choices, source: Source | Given) -> None:
    """Check that what a target in time is about can be measured: the whole model on one device, sliced.

    Raises:
        ValueError: it cannot.
    """
    target = f"target.{in_time(config.target)[0]}"
    placement = f"device with {target}, which is measured there"
    require(source.placement == "device", "model.placement", source.placement, placement)
    require(
        not config.mask_only, "mask_only", True, f"false with {target}: a masked model takes as long as a dense one"
    )
    choices.request.comparisons(source.max_length)


def check_budget(
    adapter: ModelAdapter, choices: Choices, config: FlapConfig, model: Architecture | Source | Given
) -> Budget:
    """Return the budget, counted from the tensors.

    Raises:
        ValueError: the ratio, a target or a choice does not fit this model.
    """
    plain = choices.structure.min_heads or all(
        may_lose_all_heads(adapter.attention(i)) for i in range(len(adapter.layers))
    )
    allowed = "1 or more for this model, whose heads share more than their projections (norms, sinks, a state)"
    require(bool(plain), "structure.min_heads", choices.structure.min_heads, allowed)
    budget = price(adapter, config.ratio or 0)
    if targets(config.target):
        adds = choices.compensation.adds_bias
        biases = Biases(adds, adds and choices.structure.layer_by_layer and takes_output_biases(adapter))
        itemsize, context = model.dtype.itemsize, model.max_length
        budget = budget.within(bounds_of_shapes(config.target, adapter, budget.layers, itemsize, biases, context))
    choices.structure.check(budget)
    return budget


def overlaps(texts: Mapping[str, Windows], tasks: Sequence[Task]) -> list[str]:
    """Return warnings about tasks that are measured on a text of calibration or recovery, or on documents from it."""
    warnings = []
    for task, (use, windows) in product(tasks, texts.items()):
        for text in windows.known:
            if task.text_sha256 == text.sha256:
                warnings.append(f"{task.name} is measured on the {use} text itself")
            elif text.name in task.shares_text_with:
                warnings.append(f"{task.name} is measured on documents that {text.name} is made of, too")
    return list(dict.fromkeys(warnings))
