"""Complete runs prune and train a tiny vision-language model, and copy its image processor."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

import flap
from flap.models import adapt, read_model
from flap.pipeline import run
from tests.cases import random_model
from tests.helpers.runs import composed, tiny
from tests.models.families.test_vision import TestLlava as Llava


@pytest.fixture(scope="module")
def vision_dir(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """Save a tiny LLaVA, its tokenizer, and the config file of its image processor."""
    path = tmp_path_factory.mktemp("vision") / "tiny-llava"
    random_model(Llava.configs["gqa"]).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "processor_config.json").write_text(
        json.dumps({"processor_class": "LlavaProcessor", "patch_size": 4})
    )
    return path


def pruned(directory: Path) -> PreTrainedModel:
    flap.register()
    return AutoModelForImageTextToText.from_pretrained(directory).eval()


def test_a_run_copies_the_processor_and_its_card_says_so(
    vision_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    run(composed(*tiny(vision_dir, text_file), "ratio=0.4"), tmp_path)
    copied = tmp_path / "checkpoint" / "processor_config.json"
    assert copied.read_bytes() == (vision_dir / copied.name).read_bytes()
    card = copied.with_name("README.md").read_text()
    assert "import AutoModelForImageTextToText, AutoProcessor" in card and "vllm" not in card


@pytest.mark.parametrize("how", [pytest.param("lora", marks=pytest.mark.long), "full"])
def test_training_is_of_the_language_model_alone(
    how: str, vision_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    options = [
        *tiny(vision_dir, text_file),
        "ratio=0.4",
        f"recover={how}",
        f"cache_dir={tmp_path / 'cache'}",
    ]
    options += [
        "recover.tokens=1216",
        "recover.seq_len=16",
        *(["recover.rank=4"] if how == "lora" else []),
    ]
    report = run(composed(*options, "calibration.batch_size=4"), tmp_path)
    assert report.recovery["nats_after"] < report.recovery["nats_before"]
    dense = read_model(vision_dir)
    trained = pruned(tmp_path / "checkpoint")
    inside = {id(parameter) for parameter in adapt(dense).decoder.parameters()}
    after = trained.state_dict()
    others = {name: one for name, one in dense.named_parameters() if id(one) not in inside}
    assert any("vision_tower" in name for name in others) and any(
        "projector" in name for name in others
    )
    assert all(torch.equal(after[name], one) for name, one in others.items())
