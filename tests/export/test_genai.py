"""Exported graphs in ONNX Runtime GenAI, which writes the text that transformers writes."""

import json
from pathlib import Path

import onnxruntime_genai
import pytest
from transformers import GenerationConfig, PreTrainedTokenizerFast

from flap.export.genai import genai_config
from flap.export.graph import export_graph
from tests.cases import random_model
from tests.helpers.engine_cases import PROMPT, family_checkpoint, family_config


def written(folder: Path, new_tokens: int) -> list[int]:
    """The most probable tokens that follow the prompt."""
    model, length = onnxruntime_genai.Model(str(folder)), PROMPT.shape[1]
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(do_sample=False, max_length=length + new_tokens, min_length=length + new_tokens)
    generator = onnxruntime_genai.Generator(model, options)
    generator.append_tokens(PROMPT[0].tolist())
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[length:]]


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_writes_the_same(family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    pruned = family_checkpoint(family, "by layer", tokenizer, tmp_path / "pruned", layers=2)
    ends = pruned.model.generation_config
    ends.eos_token_id = [7, 9]  # as of a chat model, whose config names the end of a document alone
    ends.save_pretrained(pruned.directory)
    folder = export_graph(pruned.directory, "onnx")
    assert written(folder, 12) == pruned.greedy(PROMPT)
    assert json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"] == [7, 9]
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [7, 9]
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()  # no folder of this machine


def test_it_reads_the_config_of_a_model_without_special_tokens(tmp_path: Path) -> None:
    config = family_config("llama")
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    (tmp_path / "genai_config.json").write_text(json.dumps(genai_config(random_model(config), ["input_ids"])))
    onnxruntime_genai.Config(str(tmp_path))


@pytest.mark.long
def test_a_sliding_window_has_an_input_that_it_does_not_feed(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    pruned = family_checkpoint("gemma2", "by layer", tokenizer, tmp_path / "pruned", layers=2)
    folder = export_graph(pruned.directory, "onnx")
    assert (folder / "model.onnx").is_file() and not (folder / "genai_config.json").exists()
