"""The packaged SmolLM2, 20 % smaller, as a GGUF: llama.cpp continues English as transformers does."""

import gc
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from flap.checkpoint.gguf import export_gguf, source_gguf
from flap.checkpoint.load import load
from flap.models import packaged_gguf
from flap.pipeline import run
from tests.checkpoint.llama_cpp import llama_cpp
from tests.runs import composed

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PROMPT = "The capital of France is Paris. In 1889 the Eiffel Tower"
NEW_TOKENS = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    options = ["eval=none", "calibration.num_samples=32", "checkpoint.formats=[hf,gguf]", "checkpoint.gguf_type=q8_0"]
    run(composed(*options), folder)
    gc.collect()
    return folder / "checkpoint"


def test_the_tokenizer_is_that_of_the_source(checkpoint: Path) -> None:
    source = packaged_gguf(SMOLLM2)
    assert source is not None and source_gguf(str(checkpoint)) == source
    ours, theirs = (GGUFReader(path).fields for path in (checkpoint / "model-q8_0.gguf", source))
    names = {name for name in theirs if name.startswith("tokenizer.")}
    assert names == {name for name in ours if name.startswith("tokenizer.")} and len(names) == 12
    for name in names:
        assert ours[name].contents() == theirs[name].contents() and ours[name].types == theirs[name].types


def test_it_continues_english_as_transformers_does(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = export_gguf(checkpoint, "f32")
    assert GGUFReader(gguf).fields["general.architecture"].contents() == "deci"
    tokens = llama_cpp(gguf, texts=[PROMPT])["ids"][0]
    found = llama_cpp(gguf, tokens=tokens, plain=28, prompt=PROMPT, new_tokens=NEW_TOKENS)
    small = llama_cpp(checkpoint / "model-q8_0.gguf", tokens=tokens, plain=28, prompt=PROMPT, new_tokens=NEW_TOKENS)
    model = load(checkpoint)
    prompt = torch.tensor([tokens])
    with torch.no_grad():
        expected = model(input_ids=prompt).logits[0].log_softmax(-1)
    greedy = model.generate(prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
    exact, rounded = (torch.tensor(one["logprobs"]) - expected for one in (found, small))
    with capsys.disabled():
        print(f"\nllama.cpp, f32 (max difference {exact.abs().max():.2g}): {PROMPT}{found['text']!r}")
        print(f"llama.cpp, q8_0 (mean difference {rounded.abs().mean():.2g}): {PROMPT}{small['text']!r}")
    assert exact.abs().max() <= 1e-3
    assert rounded.abs().mean() <= 0.05
    assert found["greedy"] == greedy[0, len(tokens) :].tolist()
