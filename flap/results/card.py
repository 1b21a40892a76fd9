"""The text of a model card, in the hub's format, from the report of the run that wrote the checkpoint."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from omegaconf import OmegaConf

from flap.checkpoint.card import MARK, without_folders
from flap.results.engines import loading
from flap.results.notices import notices
from flap.results.numbers import is_efficiency
from flap.results.report import Report
from flap.results.table import Row, markdown_table, measured, sizes

TAGS = ["flap", "pruning", "structured-pruning"]
MADE_WITH = (
    "method", "ratio", "round_to", "metric", "structure", "compensation", "calibration", "recover", "mask_only", "seed",
)  # fmt: skip
PAPER = "[FLAP](https://arxiv.org/abs/2312.11983) (An et al., AAAI 2024)"


def model_card(report: Report, checkpoint: Path, base: dict[str, Any]) -> str:
    """Return the card: metadata, numbers, how to load the checkpoint in each engine, and how it was made.

    checkpoint: its directory; the engines whose files are in it are named. base: see `flap.models.base_facts`.
    """
    title = f"{report.config['model']['name']} pruned by {report.ratio['realised_decoder']:.0%}"
    data = ModelCardData(
        **base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        model_name=title,
        eval_results=_results(report) or None,
    )
    parts = [
        *(MARK, f"# {title}", _summary(report, base)),
        *("## Numbers", _numbers(report), *notices(report)),
        loading(checkpoint),
        *("## How it was made", _choices(report)),
        *("## Licence", _licence(base)),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _summary(report: Report, base: dict[str, Any]) -> str:
    """Return what the model is, in two or three sentences."""
    removed, name = report.ratio["realised_decoder"], base.get("base_model", report.config["model"]["name"])
    training = "Then it was trained, see below." if report.recovery else "Nothing was trained."
    return (
        f"`{name}` without {removed:.2%} of the parameters of its decoder layers: attention heads and MLP neurons were "
        f"removed after {PAPER}, by `flap-pruning` {report.versions['flap-pruning']}. {training} What is left is "
        "dense: smaller matrices, with a number of heads and neurons for each layer."
    )


def _numbers(report: Report) -> str:
    """Return a table of the measured numbers and one of the sizes."""
    heading: Row = ("", "dense", "pruned")
    tables = [measured(report), [heading, *sizes(report)]]
    return "\n\n".join(markdown_table(table) for table in tables if len(table) > 1)


def _results(report: Report) -> list[EvalResult]:
    """Return the measured numbers of quality as the hub's evaluation results: of the pruned model, finite ones."""
    numbers = {
        name: value
        for name, value in report.evaluation["pruned"].items()
        if "/" in name and math.isfinite(value) and not name.endswith("_stderr") and not is_efficiency(name)
    }
    return [_result(*name.rpartition("/")[::2], value) for name, value in numbers.items()]


def _result(text: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=text,
        dataset_name=text,
        metric_type=metric.partition("@")[0],
        metric_name=metric,
        metric_value=round(value, 4),
    )


def _choices(report: Report) -> str:
    """Return the choices of the run and the versions of libraries as YAML."""
    choices = {
        name: without_folders(report.config[name]) for name in MADE_WITH if report.config[name] not in (None, {})
    }
    text = OmegaConf.to_yaml({"run_name": report.config["run_name"], **choices, "versions": report.versions})
    return f"```yaml\n{text}```\n\n`flap.json` has the whole config and the units that each layer kept."


def _licence(base: dict[str, Any]) -> str:
    if "license" not in base:
        return "That of the base model, whose files do not name it: look it up before you share this checkpoint."
    return f"That of the base model: {base.get('license_name', base['license'])}."
