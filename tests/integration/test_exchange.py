"""A whole run in which units of the plan change sides, and what it does not go with."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flap.allocation import PruningPlan
from flap.results import Report

EXCHANGE = ["metric=OBS", "structure=search", "compensation=linear", "structure.tokens=32", "structure.exchange=4"]


def test_a_run_says_what_it_has_exchanged(tmp_path: Path, run_tiny: Callable[..., Report]) -> None:
    alone = run_tiny(tmp_path / "alone", *EXCHANGE[:-1], "ratio=0.5")
    report = run_tiny(tmp_path / "with", *EXCHANGE, "ratio=0.5")
    plans = [PruningPlan.load(tmp_path / name / "plan.json").layers for name in ("alone", "with")]
    new = sum(len(set(b) - set(a)) for pair in zip(*plans, strict=True) for a, b in zip(*pair, strict=True))
    assert new == report.exchange["units"] and alone.exchange == {}
    assert report.exchange["nats_after"] <= report.exchange["nats_before"]
    assert f"{new} units were kept in the place of others" in (tmp_path / "with" / "report.md").read_text()
    assert report.ratio["realised_decoder"] == pytest.approx(0.5, abs=0.02) and "exchange" in report.seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["structure.exchange=-1"], r"^structure\.exchange=-1: expected a whole number >= 0$"),
        (["compensation=bias"], r"^structure\.exchange=4: expected 0, or compensation=linear"),
        (["ratio=null", "target.parameters=30000"], r"^structure\.exchange=4: expected 0, or a ratio instead"),
        (["structure.divergence=acceptance"], r"^structure\.exchange=4: expected 0, or divergence=kl$"),
        (["round_to=8"], r"^structure\.exchange=4: expected 0, or units that leave one by one$"),
        (["structure.layers=true"], r"^structure\.exchange=4: expected 0, or units that leave one by one$"),
        (["model.placement=stream"], r"^model\.placement=stream: expected device with structure\.exchange=4"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], message: str, tmp_path: Path, run_tiny: Callable[..., Report]
) -> None:
    with pytest.raises(ValueError, match=message):
        run_tiny(tmp_path, *EXCHANGE, *options)
