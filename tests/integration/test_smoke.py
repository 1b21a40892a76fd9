"""With `+debug=smoke`, a run does all stages on little data, and warns of meaningless results."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flap.config import config_dir
from flap.pipeline import run
from tests.helpers.marks import quick
from tests.helpers.runs import composed

WARNING = "this is a smoke run (debug): its numbers mean nothing"
SMOKE = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "debug" / "smoke.yaml"))
KEYS = [
    (group, key)
    for group in ("calibration", "structure", "compensation", "recover")
    for key in SMOKE[group]
]
KEYS += [(f"eval/{name}", key) for name, options in SMOKE["eval"].items() for key in options]


@pytest.mark.parametrize(("group", "key"), KEYS, ids=str)
def test_every_key_is_one_that_a_choice_has(group: str, key: str) -> None:
    folder = Path(config_dir()) / group.partition("/")[0]
    files = [Path(config_dir()) / f"{group}.yaml"] if "/" in group else folder.glob("*.yaml")
    assert any(f"\n{key}: " in file.read_text() for file in files) or group == "calibration"


@pytest.mark.parametrize(
    "options",
    quick(
        1,
        [
            ["method=flap_plus", "calibration=boolq-passages"],
            ["recover=full"],
            ["recover=reconstruct"],
        ],
    ),
)
def test_all_stages_run_on_two_windows(options: list[str], base: list[str], tmp_path: Path) -> None:
    evaluators = "eval=[perplexity,efficiency]"
    report = run(
        composed("+debug=smoke", *base, "model.dtype=float32", evaluators, *options),
        tmp_path / "run",
    )
    assert (
        report.config["calibration"]["num_samples"] == 2
        and report.config["calibration"]["seq_len"] == 64
    )
    assert (
        report.config["eval"]["perplexity"]["max_tokens"] == 128
        and "zero_shot" not in report.config["eval"]
    )
    assert report.warnings[0] == WARNING and (tmp_path / "run" / "checkpoint").is_dir()
    assert ("recover" in report.seconds) == ("recover" in options[0])
    assert f"Warning: {WARNING}" in (tmp_path / "run" / "report.md").read_text()
