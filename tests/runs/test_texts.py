"""An option for the answers that the model generates is refused if the option has no effect.

The option is accepted, however, if a preset such as calibration=answers sets it, if its value is
the default, or if the method needs no calibration text. Each text that the model generates is
written to a separate file with a valid name.
"""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.data import Part, Windows
from flap.data.dialogue import GIVEN, Asked
from flap.runs.preparation import prepare
from flap.runs.texts import own_text_files
from tests.helpers.runs import composed


def file_names(tokenizer: PreTrainedTokenizerFast, *datasets: str) -> list[str]:
    """Return the file names of the texts that the model generates, in the order of the datasets."""
    parts = tuple(Part(dataset) for dataset in datasets)
    asked = {
        part: Asked((), dataset, dataset, chat=False, answers=GIVEN)
        for part, dataset in enumerate(datasets)
        if dataset != "self"
    }
    texts = (None,) * len(parts)
    windows = Windows(parts, texts, tokenizer, num_samples=1, seq_len=2, seed=0, asked=asked)
    return [name for _, name in sorted(own_text_files("calibration", windows).items())]


def test_each_text_has_a_file_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    names = ["self_calibration_a.jsonl", "self_calibration_b.c.jsonl", "self_calibration.jsonl"]
    assert file_names(tokenizer, "my/a.jsonl", "my/b.c.parquet", "self") == names


@pytest.mark.parametrize(
    "datasets",
    [
        ("a.jsonl", "a.parquet"),
        ("one/a.jsonl", "two/a.jsonl"),
        ("a.jsonl", "A.jsonl"),
        ("caf\u00e9.jsonl", "cafe\u0301.jsonl"),
        ("a?.jsonl", "a*.jsonl"),
        ("a.jsonl", "x/a.jsonl", "1-a.jsonl", "2-a.jsonl"),
        ("n" * 230 + "1.jsonl", "n" * 230 + "2.jsonl"),
    ],
    ids=str,
)
def test_names_that_would_be_the_same_get_numbers(
    datasets: tuple[str, ...], tokenizer: PreTrainedTokenizerFast
) -> None:
    names = file_names(tokenizer, *datasets)
    assert len({name.casefold() for name in names}) == len(datasets)
    for number, name in enumerate(names, start=1):
        assert name.startswith(f"self_calibration_{number}-")


@pytest.mark.parametrize("stem", ["n" * 241, "é" * 120, 'a<b>c:d"e\\f|g?h*i\tj\nk'])
def test_every_file_system_takes_the_names(stem: str, tokenizer: PreTrainedTokenizerFast) -> None:
    [name] = file_names(tokenizer, f"{stem}.jsonl")
    assert name.startswith("self_calibration_") and name.endswith(".jsonl")
    assert len(name.encode()) <= 240
    assert not set('<>:"/\\|?*\t\n') & set(name)


@pytest.mark.parametrize(
    "arguments",
    [
        "calibration=answers",
        "method=flap_plus",
        "+debug=smoke",
        "calibration.answers=given calibration.count=all calibration.max_new_tokens=64",
        "method=mag_sp calibration.answers=self calibration.temperature=1",
    ],
)
def test_presets_defaults_and_methods_without_texts_are_not_refused(
    arguments: str, base: list[str], tmp_path: Path
) -> None:
    overrides = [*arguments.split(), *base, "eval=none", "checkpoint.save=false"]
    overrides = [one for one in overrides if not one.startswith("eval.")]
    run = prepare(composed(*overrides), None, overrides=overrides)
    assert not any(windows.asked for windows in run.texts.values())
