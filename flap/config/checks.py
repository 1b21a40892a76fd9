"""Check a composed config, and convert it to dataclasses."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from itertools import product
from operator import attrgetter
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flap.config.explanations import as_share, explain
from flap.config.messages import require, require_counts, shown
from flap.config.methods import name_method
from flap.config.paths import check_path, home_replaced, paths_in
from flap.config.resolvers import model_name
from flap.config.schema import CHOICES, LONGEST_TIMEOUT, FlapConfig, TargetConfig, targets

# The option `objective` names numbers in a run's report, such as EXAMPLE. Each name begins with one
# of these sections of the report.
OBJECTIVES = ("pruned", "dense", "parameters", "ratio", "seconds")
EXAMPLE = "pruned/sciq_answers/exact_match"
# The options that are refused if the option `plan` is set, because the plan lists the units
# (attention heads, neurons or experts) that stay in the model.
PLANNED = ("ratio", "target", "metric", "structure", "round_to")


def typed(config: DictConfig) -> FlapConfig:
    """Check a composed config, and return it as dataclasses with all interpolations resolved.

    Fields of type `Any` that hold the choice of a config group stay dicts, from which `build` in
    flap/config/objects.py creates objects.

    Raises:
        ValueError: a value is invalid. The message is one line with the field, its value and what
            is allowed.
    """
    try:
        checked = _as_dataclasses(config)
    except OmegaConfBaseException as error:
        raise ValueError(explain(error)) from error
    timeout(checked.timeout_minutes)
    _check_amount(checked.ratio, checked.target, checked.plan)
    if checked.plan is not None:
        checked.metric = checked.structure = None
    _check_values(checked)
    objectives(checked.objective)
    _check_paths(checked)
    checked.method = name_method(checked)
    model = checked.model
    checkpoint = checked.checkpoint
    model.name = model_name(model.name, model.path)
    model.path = home_replaced("model.path", model.path)
    if checkpoint.dir is not None:
        checkpoint.dir = home_replaced("checkpoint.dir", checkpoint.dir)
    if checked.cache_dir is not None:
        checked.cache_dir = home_replaced("cache_dir", checked.cache_dir)
    if checked.plan is not None:
        checked.plan = home_replaced("plan", checked.plan)
    return checked


def _as_dataclasses(config: DictConfig) -> FlapConfig:
    """Check the keys of a config, and convert the config to dataclasses.

    Raises:
        ValueError: a key is unknown, or was deleted with ~ on the command line.
        OmegaConfBaseException: a value has the wrong type, or an interpolation cannot be resolved.
    """
    _refuse_unknown_keys(config, FlapConfig, "")
    config = copy.deepcopy(config)
    _set_existing_keys(config, config.get("debug") or {})
    for name in (field.name for field in fields(FlapConfig)):
        deleted = name not in config
        if name in ("metric", "structure", "compensation"):
            deleted = deleted or config[name] is None
        allowed = "another choice, as --help lists them: each run has one"
        require(not deleted, f"~{name}", None, allowed)
    checked = OmegaConf.to_object(config)
    assert isinstance(checked, FlapConfig)
    return checked


def objectives(chosen: Any) -> list[str]:
    """Return the names in the option `objective`, as a list.

    chosen: the value of the option, which is None, a name, or a list of names. The names stand for
        numbers in the report of a run, such as a perplexity. The run returns these numbers to
        Hydra.

    Raises:
        ValueError: a name does not begin with one of the sections in `OBJECTIVES` and a slash.
    """
    names = chosen if isinstance(chosen, list) else [chosen]
    if chosen is None:
        names = []
    sections = ", ".join(f"{section}/" for section in OBJECTIVES)
    for name in names:
        valid = isinstance(name, str) and name.partition("/")[0] in OBJECTIVES
        allowed = f"names that begin with one of {sections}, such as {EXAMPLE}"
        require(valid and "/" in name, "objective", name, allowed)
    return names


def timeout(minutes: float) -> timedelta:
    """Convert the option `timeout_minutes` to a timedelta.

    Raises:
        ValueError: `minutes` is not above 0, or is more than a year.
    """
    valid = 0 < minutes <= LONGEST_TIMEOUT
    allowed = f"a number of minutes above 0 and at most {LONGEST_TIMEOUT}, which is a year"
    require(valid, "timeout_minutes", minutes, allowed)
    return timedelta(minutes=minutes)


def _check_paths(config: FlapConfig) -> None:
    """Check the paths in a config, and the names of texts and tasks, which may also be paths."""
    named: dict[str, Any] = {
        "model.path": config.model.path,
        "checkpoint.dir": config.checkpoint.dir,
        "cache_dir": config.cache_dir,
        "plan": config.plan,
        "calibration.dataset": config.calibration.dataset,
    }
    for group in ("vocabulary", "recover"):
        choice = getattr(config, group)
        if isinstance(choice, Mapping):
            named[f"{group}.dataset"] = choice.get("dataset")
    for name, choice in (config.eval or {}).items():
        if isinstance(choice, Mapping):
            named[f"eval.{name}.datasets"] = choice.get("datasets")
            named[f"eval.{name}.tasks"] = choice.get("tasks")
    for field, value in named.items():
        for path in paths_in(value):
            check_path(field, path)


def _set_existing_keys(config: Any, values: Mapping[str, Any]) -> None:
    if not isinstance(config, DictConfig):  # a group without a choice has no keys
        return
    for key, value in values.items():
        if key in config and isinstance(value, Mapping):
            _set_existing_keys(config[key], value)
        elif key in config:
            config[key] = value


def _refuse_unknown_keys(config: DictConfig, schema: type, prefix: str) -> None:
    """Raise an error for keys that the schema lacks. Hydra itself accepts them as `+key=value`."""
    field_types = {field.name: field.type for field in fields(schema)}
    for key in map(str, config):
        if key not in field_types:
            raise ValueError(
                f"{prefix}{key}: unknown key; expected one of {', '.join(sorted(field_types))}"
            )
        section = field_types[key]
        if isinstance(section, type) and is_dataclass(section):
            _refuse_unknown_keys(config[key], section, f"{key}.")


def refuse(overrides: Iterable[str], settled: Mapping[str, str]) -> None:
    """Raise an error if an override sets one of the config groups or keys in `settled`.

    Such an override would have no effect, although the report of the run would show it.

    overrides: arguments of a command line, such as "ratio=0.5".
    settled: the groups and keys that must not be overridden, in a dict. The dict's values are the
        reasons, such as "a plan says which units stay", and become part of the error message.

    Raises:
        ValueError: an override sets a group or a key in `settled`. If there are several of these
            overrides, the message names the first one.
    """
    for override, (name, reason) in product(overrides, settled.items()):
        key = override.lstrip("+~").partition("=")[0]
        if f"{key}.".startswith(f"{name}."):
            raise ValueError(f"{shown(override)}: expected no {name} here, because {reason}")


def check_measurements(chosen: Any, overrides: Iterable[str]) -> None:
    """Raise an error if a config sets options of a measurement that the run does not make.

    For example, a file in conf/experiment/ sets `eval.generation.limit`, but the command line has
    `eval=[perplexity]`.

    chosen: the section `eval` of a composed config.
    overrides: the command-line arguments that set options.

    Raises:
        ValueError: a config sets options of a measurement that the run does not make. The message
            names the keys of these options, and says how to change the command.
    """
    measured = []
    unmeasured = []
    keys = []
    for name, options in (chosen or {}).items():
        if not isinstance(options, Mapping) or "_target_" in options:
            measured.append(name)
        else:
            unmeasured.append(name)
            keys += [f"eval.{name}.{key}" for key in options]
    if not unmeasured:
        return

    experiments = [word for word in overrides if word.startswith("+experiment=")]
    source = experiments[0] if experiments else "a file of the config or the command line"
    wider = ",".join(map(str, [*measured, *unmeasured]))
    without = " ".join(f"'~eval.{name}'" for name in unmeasured)
    raise ValueError(
        f"{', '.join(keys)}: set by {source}, but this run does not measure "
        f"{' and '.join(unmeasured)}; write 'eval=[{wider}]', or drop these keys with {without}"
    )


def settled_by(plan: Any) -> dict[str, str]:
    """Return the groups and keys that must not be set if a plan is set, each with the reason.

    A plan lists the units (heads, neurons or experts) that stay. `refuse` takes the returned dict
    as its argument `settled`. The dict is empty if `plan` is None.
    """
    if plan is None:
        return {}
    return dict.fromkeys(PLANNED, f"plan={shown(plan)} says which units stay")


def _check_amount(ratio: float | None, target: TargetConfig, plan: str | None) -> None:
    chosen = targets(target)
    if plan is not None:
        refuse([f"target.{name}={value:.12g}" for name, value in chosen.items()], settled_by(plan))
        allowed = f"null with plan={shown(plan)}, which says which units stay"
        require(ratio is None, "ratio", ratio, allowed)
        return
    for name, value in chosen.items():
        require(0 < value < math.inf, f"target.{name}", value, "a number > 0")
        one_of_both = f"ratio=null (it is {ratio}): a run takes a ratio or targets, not both"
        require(ratio is None, f"target.{name}", f"{value:.12g}", one_of_both)
    if not chosen:
        allowed = f"a number with 0 <= ratio < 1{as_share(ratio)}"
        require(ratio is not None and 0 <= ratio < 1, "ratio", ratio, allowed)
    require_counts(target, "target", context=1, sequences=1)


def _check_values(config: FlapConfig) -> None:
    """Check values that can be checked before the model, its tokenizer and the texts are read."""
    checks = {
        "seed": (0 <= config.seed < 2**32, "a whole number from 0 to 2**32 - 1"),
        "cache_wait_seconds": (config.cache_wait_seconds >= 0, "a number >= 0"),
    }
    for name, allowed in CHOICES.items():
        checks[name] = (attrgetter(name)(config) in allowed, f"one of {', '.join(allowed)}")
    for name, (valid, expected) in checks.items():
        require(valid, name, attrgetter(name)(config), expected)
    require_counts(config.calibration, "calibration", num_samples=1, batch_size=1, seq_len=2)
