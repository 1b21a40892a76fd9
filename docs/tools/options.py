"""Make the page of all options, with types, defaults and meanings from the code."""

from collections.abc import Iterable, Iterator
from dataclasses import Field, fields, is_dataclass
from inspect import getsource
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from meanings import as_typed, comments, default_of, from_class, summary, type_of
from omegaconf import OmegaConf

from flap.config import FlapConfig, config_dir

CONF = Path(config_dir())
INTRODUCTION = """# Every option

Look up here what an option means and what its default is. Write options as `key=value` behind
`python -m flap`. To see all options of a run with their values, add `--cfg job`.

- A *group*, such as `metric`, takes the name of one of its choices: `metric=WIFV`. Only `eval` takes a list:
  `eval=[perplexity,zero_shot]`.
- An option below a group, such as `metric.ridge`, exists for the choices in the column "of".
- `null` stands for no value.

The options of launchers are in [Run on SLURM or several GPUs](clusters.md). Examples of most options are in
[Prune my model](prune.md), and the formulas behind them in [The method](method.md)."""  # noqa: E501


def options_page() -> str:
    """Return the page of all options as Markdown."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        groups = {
            path.name: dict(_choices(path)) for path in sorted(CONF.iterdir()) if path.is_dir()
        }
        parts = [
            INTRODUCTION,
            *_sections(),
            *_presets(),
            *(_group(*group) for group in groups.items() if group[1]),
        ]
    return "\n\n".join(parts) + "\n"


def _sections() -> Iterator[str]:
    """Yield a heading and a table of keys: first for the top level, then for each section."""
    sections = [
        field
        for field in fields(FlapConfig)
        if isinstance(field.type, type) and is_dataclass(field.type)
    ]
    own = []
    for field in fields(FlapConfig):
        is_group = field.type is Any and (CONF / field.name).is_dir()
        if field not in sections and not is_group:
            own.append(field)
    yield "\n\n".join(["## A run", _table(_rows(FlapConfig, own, ""))])
    for section in sections:
        rows = _rows(section.type, fields(section.type), f"{section.name}.")  # type: ignore[arg-type]
        yield "\n\n".join([f"## `{section.name}`", summary(section.type), _table(rows)])  # type: ignore[arg-type]


def _rows(section: type, chosen: Iterable[Field[Any]], prefix: str) -> Iterator[tuple[str, ...]]:
    meanings = comments(getsource(section), r"    (\w+): ")
    for field in chosen:
        default = as_typed(default_of(field)).replace("`???`", "of the choice")
        yield f"`{prefix}{field.name}`", type_of(field), default, meanings.get(field.name, "")


def _presets() -> Iterator[str]:
    """Yield a heading and the names of the presets for each group that contains only presets.

    A preset sets keys that other parts of the page explain, so its own options need no table.
    """
    for group in ("model", "calibration", "method"):
        names = [f"`{path.stem}`" for path in sorted((CONF / group).glob("*.yaml"))]
        yield f"## `{group}=`\n\n{', '.join(names)}"


def _choices(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the config of each choice of a group that selects a class.

    The config of such a choice has a `_target_`.

    folder: the folder of the group in conf/, such as conf/metric.
    """
    for path in (
        sorted(folder.glob("[!_]*.yaml"))
        if folder.name not in ("experiment", "method", "debug")
        else ()
    ):
        group = folder.name
        name = path.stem
        config = compose("config", [f"{group}=[{name}]" if group == "eval" else f"{group}={name}"])
        node = OmegaConf.to_container(config[group], resolve=False) or {}
        node = node.get(name, {}) if group == "eval" else node  # type: ignore[union-attr]
        if "_target_" in node:
            yield name, node  # type: ignore[misc]


def _group(group: str, choices: dict[str, dict[str, Any]]) -> str:
    """Return the section about a config group: a line for each choice, then a table of options.

    choices: a dict from the name of each choice to its config.
    """
    lines = [
        f"- `{name}`: {summary(get_class(node['_target_']))}" for name, node in choices.items()
    ]
    takers: dict[tuple[str, ...], list[str]] = {}
    meanings: dict[tuple[str, ...], str] = {}
    for name, node in choices.items():
        for *option, meaning in _options(group, name, node):
            takers.setdefault(tuple(option), []).append(f"`{name}`")
            meanings.setdefault(tuple(option), meaning)
    rows = [(*option, ", ".join(names), meanings[option]) for option, names in takers.items()]
    return "\n\n".join(
        [f"## `{group}=`", "\n".join(lines), *([_table(rows, "of")] if rows else [])]
    )


def _options(group: str, name: str, node: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the name, the type, the default and the meaning of each option of a choice.

    node: the config of the choice.

    The default comes from this config, or else from the dataclass.
    """
    files = [
        path
        for path in (CONF / group / "_base.yaml", CONF / group / f"{name}.yaml")
        if path.is_file()
    ]
    texts = "".join(path.read_text() for path in files)
    target = get_class(node["_target_"])
    meanings = comments(texts, r"(\w+):")
    prefix = f"{group}.{name}." if group == "eval" else f"{group}."
    for field in fields(target):
        if not field.repr:
            continue  # a field that only the program sets, and not the user
        default = as_typed(node.get(field.name, default_of(field)))
        meaning = meanings.get(field.name) or from_class(target, field.name)
        yield f"`{prefix}{field.name}`", type_of(field), default, meaning


def _table(rows: Iterable[tuple[str, ...]], *more: str) -> str:
    heads = ["option", "type", "default", *more, "meaning"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
