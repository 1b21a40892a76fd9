"""What the best cells of a sweep keep of what they have measured before."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flap.results import Report
from flap.storage import write_status
from flap.sweeps.promote import promote


def test_another_text_comes_beside_those_measured_before(
    run_tiny: Callable[..., Report], text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text()[:2000])
    cell = tmp_path / "s" / "0_tiny"
    before = run_tiny(cell)
    write_status(cell, "finished")
    lengths = ["eval.perplexity.seq_len=8", "eval.perplexity.max_tokens=320"]
    options = ["by=words.txt/perplexity@16", "eval=[perplexity]", f"eval.perplexity.datasets=[{other}]", *lengths]
    assert promote(cell.parent, options) == [cell.name]
    after = Report.load(cell / "report.json")
    for which, numbers in before.evaluation.items():
        assert {name: after.evaluation[which][name] for name in numbers} == pytest.approx(numbers)
        assert "other.txt/perplexity@8" in after.evaluation[which]
    assert after.difference_stderr.keys() == after.better.keys() > before.better.keys()
    told = after.config["eval"]["perplexity"]
    assert (told["datasets"], told["seq_len"]) == ([str(text_file), str(other)], [16, 8])
    written = (cell / "report.json").read_bytes()
    assert promote(cell.parent, options) == [cell.name]
    assert (cell / "report.json").read_bytes() == written


@pytest.mark.parametrize("name", ["grid (ü), v2", "it's", "plain-2"])
def test_the_command_that_saves_checkpoints_is_read_as_it_is_printed(
    name: str, run_tiny: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_tiny(Path(name, "0_tiny"), "checkpoint.save=false")
    write_status(Path(name, "0_tiny"), "finished")
    with pytest.raises(ValueError, match="this saves them: ") as refused:
        promote(Path(name), ["by=words.txt/perplexity@16", "eval=[generate]"])
    *_, word = shlex.split(str(refused.value).partition("this saves them: ")[2])
    assert OverridesParser.create().parse_override(word).value() == name
    assert (word == f"hydra.sweep.dir={name}") == (name == "plain-2")
