"""A checkpoint has a model card: a README.md in the format of the Hugging Face hub."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from flap.checkpoint.card import CARD, MARK
from flap.models import base_facts
from flap.results import Report, model_card
from flap.results.card_text import PLACE
from tests.cases import tokens

APACHE = {"base_model": "org/dense", "license": "apache-2.0", "language": "en"}


@pytest.fixture(scope="module")
def made(finished: Path) -> tuple[Report, Path]:
    return Report.load(finished / "report.json"), finished / "checkpoint"


def test_a_run_leaves_a_card_with_its_numbers_and_without_folders(
    made: tuple[Report, Path], model_dir: Path
) -> None:
    report, checkpoint = made
    card = ModelCard.load(checkpoint / CARD)
    assert MARK in card.text
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "text-generation",
        None,
    )
    assert "structured-pruning" in data.tags
    [(name, value), _] = [
        item for item in report.evaluation["pruned"].items() if "_stderr" not in item[0]
    ]
    assert name == "words.txt/perplexity@16"
    assert f"| {name} | {report.evaluation['dense'][name]:.3f} | {value:.3f} |" in card.text
    assert (
        "by 40%" in data.model_name
        and f"without {report.ratio['realised_decoder']:.2%}" in card.text
    )
    text = (checkpoint / CARD).read_text()
    assert str(checkpoint.parents[2]) not in text and str(model_dir.parents[1]) not in text


def test_its_code_loads_the_checkpoint(made: tuple[Report, Path]) -> None:
    _, checkpoint = made
    code = (checkpoint / CARD).read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace(PLACE, str(checkpoint)), names)
    with torch.no_grad():
        assert names["model"](input_ids=tokens()).logits.isfinite().all()
    assert names["tokenizer"]("the cat").input_ids


def test_it_names_the_base_and_its_licence_and_what_was_removed(made: tuple[Report, Path]) -> None:
    report, checkpoint = made
    card = ModelCard(model_card(report, checkpoint, APACHE))
    assert (card.data.base_model, card.data.license) == ("org/dense", "apache-2.0")
    assert "`org/dense` without" in card.text and "That of the base model: apache-2.0." in card.text
    assert "attention heads and MLP neurons were removed" in model_card(report, checkpoint, {})
    layers = [layer | {"experts": 3} for layer in report.layers]
    assert "attention heads and experts were removed" in model_card(
        replace(report, layers=layers), checkpoint, {}
    )


def test_it_shows_the_targets_that_are_set(made: tuple[Report, Path]) -> None:
    report, checkpoint = made
    assert "target:" not in model_card(report, checkpoint, {})
    of_target = report.config | {"ratio": None, "target": {"bytes": 2e8, "memory": None}}
    card = model_card(replace(report, config=of_target), checkpoint, {})
    assert "target:\n  bytes: 200000000.0\n" in card


def test_engines_are_named_whose_files_are_there(made: tuple[Report, Path], tmp_path: Path) -> None:
    report, _ = made
    for config, trust in (
        ('{"model_type": "llama"}', False),
        ('{"model_type": "flap_llama", "auto_map": {}}', True),
    ):
        (tmp_path / "config.json").write_text(config)
        text = model_card(report, tmp_path, {})
        assert ("trust_remote_code=True" in text) == ("add `--trust-remote-code`" in text) == trust
        assert (
            "the package called `flap` there is a different program" in text
        ) == trust and "pip install flap" not in text
        assert f"```\nvllm serve {PLACE}\n```" in text
        assert "llama-cli" not in text
    (tmp_path / "model-q8_0.gguf").touch()
    assert f"llama-cli -m {PLACE}/model-q8_0.gguf" in model_card(report, tmp_path, {})


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        (
            (
                "---\nbase_model: org/dense\nlicense: apache-2.0\nlanguage: en\ntags: "
                "[chat]\n---\n# Mine\n"
            ),
            APACHE,
        ),
        (
            "---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "theirs", "license_link": "LICENSE"},
        ),
        ("---\n: [\n---\n", {}),
        (None, {}),
    ],
    ids=["a card", "a licence of its own", "no YAML", "no card"],
)
def test_a_directorys_card_names_base_and_licence(
    card: str | None, facts: dict[str, Any], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / CARD).write_text(card)
    assert base_facts(str(tmp_path)) == facts


def test_a_model_of_the_hub_is_the_base_also_where_its_card_cannot_be_read() -> None:
    assert base_facts("org/absent") == {"base_model": "org/absent"}


HOSTILE = "<script>x</script> | ``` ](http://evil) \": '\n---\nlicense: mit"


def test_names_are_no_markup_and_no_metadata(made: tuple[Report, Path]) -> None:
    report, checkpoint = made
    config = report.config | {
        "run_name": HOSTILE,
        "plan": f"{HOSTILE}\n```\n<b>",
        "model": report.config["model"] | {"name": HOSTILE},
    }
    base = {"base_model": HOSTILE, "license": "other", "license_name": HOSTILE}
    text = model_card(replace(report, config=config, warnings=[HOSTILE]), checkpoint, base)
    data = ModelCard(text).data
    assert data.base_model == HOSTILE and data.license == "other"
    assert data.model_name == f"{' '.join(HOSTILE.split())} pruned by 40%"

    body = ModelCard(text).text
    # The fence of a code block has more backticks than any sequence of backticks in the block.
    outside, _, after = body.partition("\n````yaml\n")
    inside, _, licence = after.partition("\n````\n")
    assert yaml.safe_load(inside)["run_name"] == HOSTILE
    span = f"```` {' '.join(HOSTILE.split())} ````"
    assert span in outside
    assert "<script>" not in outside.replace(span, "") + licence
    assert r"\| \`\`\` \](http://evil)" in licence
