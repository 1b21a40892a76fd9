"""Hydra can compose all YAML files of conf/, and command lines give the expected configs."""

import os
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import OmegaConf

from flap.config import build, config_dir
from flap.config.resolvers import decided
from flap.method.allocation import ALAM, ULMM, ULUM, Middle
from flap.method.compression import BiasCompensation, NoCompensation
from flap.method.importance import WIFV, Magnitude, Metric, Taylor, Wanda
from flap.runs.choices import choose
from tests.cases import EXPERT_METRICS
from tests.helpers.marks import quick
from tests.helpers.runs import composed

CONF = Path(config_dir())
OPTIONS = sorted(path.relative_to(CONF) for path in CONF.glob("*/[!_]*.yaml"))
EXPERIMENTS = [path for path in OPTIONS if path.parent.name == "experiment"]
# Config files that a command line adds with a +, such as +debug=smoke.
ADDED = [*EXPERIMENTS, Path("debug/smoke.yaml")]


@pytest.mark.parametrize(
    "option", quick(10, [path for path in OPTIONS if path not in ADDED]), ids=str
)
def test_every_option_composes_and_is_built(option: Path) -> None:
    group = option.parent.name
    name = option.stem
    config = composed(
        f"{group}=[{name}]" if group == "eval" else f"{group}={name}",
        f"structure.experts={name in EXPERT_METRICS}",
    )
    choose(config)
    chosen = asdict(config)[group]
    if group == "method":
        assert chosen == name
        return
    if group == "eval":
        assert set(chosen) == {"none": set(), "paper": {"perplexity", "zero_shot"}}.get(
            name, {name}
        )
        chosen = chosen if name == "paper" else chosen.get(name, {})
    node = OmegaConf.to_container(OmegaConf.load(CONF / option))
    written = {
        key: value
        for key, value in node.items()
        if key != "defaults" and not str(value).startswith("${")
    }
    assert OmegaConf.merge(chosen, written) == chosen
    if "_target_" in node:
        assert type(build(group, chosen, object)) is get_class(node["_target_"])


@pytest.mark.long
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_cell_of_every_experiment_composes_and_is_built(experiment: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("config", [f"+experiment={experiment.stem}"], return_hydra_config=True)
    assert chosen.hydra.mode == RunMode.MULTIRUN
    sweep = [
        [f"{key}={value}" for value in str(values).split(",")]
        for key, values in chosen.hydra.sweeper.params.items()
    ]
    cells = list(product(*sweep))
    assert len(cells) >= 4

    def numbers(cell: tuple[str, ...]) -> set[str]:
        return {override for override in cell if override.split("=")[0] in ("ratio", "seed")}

    # The ratio and the seed do not change which other options are valid together. So all other
    # options are tested with one ratio and seed, and all ratios and seeds with one set of options.
    one, *_ = cells
    cells = [
        cell
        for cell in cells
        if numbers(cell) == numbers(one) or set(cell) - numbers(cell) <= set(one)
    ]
    assert {override for cell in cells for override in cell} == {
        override for values in sweep for override in values
    }
    configs = [composed(f"+experiment={experiment.stem}", *cell) for cell in cells]
    for config in configs:
        choose(config)
    # All methods of an experiment must calibrate in the same way. Two differences are ignored:
    # Wanda-sp calibrates on outputs of pruned layers, and LLM-Pruner reads fewer windows.
    expected = replace(configs[0].calibration, propagate="dense")
    for config in configs:
        calibration = replace(config.calibration, propagate="dense")
        if config.method == "llm_pruner":
            calibration = replace(calibration, num_samples=expected.num_samples)
        assert calibration == expected
    command = (CONF / experiment).read_text().splitlines()[1]
    assert command.startswith(f"# python -m flap +experiment={experiment.stem}")
    told = (CONF.parent / "experiments" / experiment.stem / "README.md").read_text()
    assert command.removeprefix("# ") in told


def test_the_default_is_the_papers_method() -> None:
    config = composed()
    choices = choose(config)
    assert choices.selection == (WIFV(), ALAM())
    assert choices.compensation == BiasCompensation()
    assert (config.method, config.calibration.propagate, config.ratio) == ("flap", "dense", 0.2)


@pytest.mark.parametrize(
    ("method", "metric", "propagate"),
    [("wanda_sp", Wanda(), "pruned"), ("mag_sp", Magnitude(), "dense")],
)
def test_the_baselines_are_presets(method: str, metric: Metric, propagate: str) -> None:
    config = composed(f"method={method}")
    choices = choose(config)
    assert choices.selection == (metric, ULUM())
    assert choices.compensation == NoCompensation()
    assert config.calibration.propagate == propagate and choices.need_windows == (
        method == "wanda_sp"
    )


def test_llm_pruner_reads_the_ten_windows_of_its_paper() -> None:
    config = composed("method=llm_pruner")
    choices = choose(config)
    assert choices.selection == (Taylor(), Middle(keep_first=4, keep_last=2))
    assert choices.compensation == NoCompensation()
    assert choices.need_gradients
    assert (config.calibration.num_samples, config.calibration.seq_len) == (10, 128)
    assert composed("method=llm_pruner", "structure=AL-AM").method == "custom"


@pytest.mark.parametrize("method", ["wanda_sp", "mag_sp"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_command_line_wins_over_a_preset(method: str, order: int) -> None:
    arguments = [f"method={method}", "metric=WIFV", "structure=UL-MM", "compensation=bias"][::order]
    config = composed(*arguments, "calibration.propagate=dense")
    choices = choose(config)
    assert choices.selection == (WIFV(), ULMM())
    assert choices.compensation == BiasCompensation()
    assert config.calibration.propagate == "dense"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("method=flap ratio=0.5 seed=3 calibration.num_samples=7", "flap"),
        ("structure=AL-AM metric=WIFV", "flap"),
        # Limits for the heads and neurons of a layer do not change the name of the method.
        (
            "round_to=8 structure.min_heads=2 structure.min_neurons=9",
            "flap",
        ),
        # The number of tokens with which the search measures plans does not change the name of the
        # method, either.
        ("method=flap_plus structure.tokens=99", "flap_plus"),
        ("structure=UL-UM", "custom"),
        ("metric.square_attention=false", "custom"),
        ("structure.scale=relative metric=OBS", "custom"),
        ("method=wanda_sp calibration.propagate=dense", "custom"),
        ("method=mag_sp compensation=bias", "custom"),
        ("method=flap_plus compensation.ridge=1.0", "custom"),
    ],
)
def test_a_run_has_the_name_of_a_method_where_that_is_what_runs(arguments: str, name: str) -> None:
    assert composed(*arguments.split()).method == name


@pytest.mark.parametrize("dataset", [{"boolq-passages": 2, "c4": 1}, ["c4", "self"], "c4"], ids=str)
def test_another_text_takes_the_place_of_a_preset_s_mixture(dataset: object) -> None:
    assert {"self", "asked-passages"} < composed("method=flap_plus").calibration.dataset.keys()
    written = str(dataset).replace("'", "")
    assert (
        composed("method=flap_plus", f"calibration.dataset={written}").calibration.dataset
        == dataset
    )


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "smollm2-135m"),
        (["model=llama-7b"], "llama-7b"),
        (["model.path=/models/mine-3b"], "mine-3b"),
        (["model.path=owner/mine-3b/"], "mine-3b"),
        (["model.path=/models/mine-3b", "model.name=chosen"], "chosen"),
    ],
)
def test_a_model_that_is_given_by_its_path_alone_has_its_folders_name(
    overrides: list[str], name: str
) -> None:
    assert composed(*overrides).model.name == name
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", overrides, return_hydra_config=True)
    run_name = OmegaConf.to_container(node, resolve=False)["run_name"]
    assert run_name.startswith("${model_name:${model.name},${model.path}}_")


@pytest.mark.parametrize("group", ["metric", "structure", "ratio"])
def test_a_choice_that_is_deleted_is_named(group: str) -> None:
    with pytest.raises(
        ValueError, match=f"^~{group}=None: expected another choice, as --help lists them"
    ):
        composed(f"~{group}")


def test_the_home_folder_is_found_in_ones_own_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = composed(
        "cache_dir='~/cache'",
        "checkpoint.dir='~/pruned'",
        "model.path='~/model'",
        "model.name=mine",
    )
    assert (config.cache_dir, config.checkpoint.dir) == ("/home/me/cache", "/home/me/pruned")
    assert config.model.path == "/home/me/model"


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        ("outputs/x_r0.2_s0", "plan-x_r0.2_s0"),
        ("outputs/mine/plan.json", "plan-mine"),
        ("smollm2-135m/flap-0.2", "plan-flap-0.2"),
    ],
)
def test_a_run_is_named_after_its_plan(plan: str, name: str) -> None:
    assert decided(plan, "WIFV_AL-AM_r0.2") == name


@pytest.mark.parametrize("key", ["calibration.dataset", "checkpoint.dir", "plan", "model.path"])
def test_a_name_that_is_not_utf_8_is_refused(key: str) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    with pytest.raises(ValueError, match=rf"^{key}='caf\\udce9\.jsonl': must be text in UTF-8$"):
        composed(f"{key}='{name}'")


def test_options_are_interpolated_once() -> None:
    r"""An escaped "\${...}" becomes "${...}" in a file name, and is not interpolated later."""
    config = composed("eval=[zero_shot]", r'eval.zero_shot.tasks=["the \${oc.env:HOME} dog.jsonl"]')
    [evaluator] = choose(config).evaluators.values()
    assert evaluator.tasks == config.eval["zero_shot"]["tasks"] == ["the ${oc.env:HOME} dog.jsonl"]
