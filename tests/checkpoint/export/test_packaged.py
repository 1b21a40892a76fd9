"""A pruned SmolLM2 continues a text in llama.cpp in the same way as in transformers.

The dense SmolLM2 comes from an installed package, and is pruned by 20 %.
"""

import gc
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

from flap.checkpoint.export.gguf.export import export_gguf
from flap.checkpoint.export.gguf.source import source_gguf
from flap.checkpoint.load import load
from flap.models import find_gguf
from flap.pipeline import run
from tests.helpers.llama_cpp import llama_cpp
from tests.helpers.runs import composed

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = "The Eiffel Tower is a wrought-iron lattice tower in Paris. It is named"
NEW_TOKENS = 24

# `make test` leaves out these tests (marker `long`), because it already runs exports of tiny models
# in llama.cpp.
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    run(composed("eval=none", "calibration.num_samples=8"), folder)
    export_gguf(folder / "checkpoint", "q8_0")
    gc.collect()
    return folder / "checkpoint"


def test_the_tokenizer_is_that_of_the_source(checkpoint: Path) -> None:
    source = find_gguf(SMOLLM2)
    assert source is not None and source_gguf(str(checkpoint)) == source
    ours = GGUFReader(checkpoint / "model-q8_0.gguf").fields
    theirs = GGUFReader(source).fields
    names = {name for name in theirs if name.startswith("tokenizer.")}
    assert names == {name for name in ours if name.startswith("tokenizer.")} and len(names) == 12
    for name in names:
        assert ours[name].contents() == theirs[name].contents()
        assert ours[name].types == theirs[name].types


def expected(checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the token ids of TEXT, the log-probabilities after each token, and the continuation.

    transformers computes the log-probabilities, and continues TEXT greedily.
    """
    model = load(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        found = model(input_ids=tokens).logits[0].log_softmax(-1)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return tokens, found, model.generate(tokens, **options)[0, tokens.shape[1] :].tolist()


def test_llama_cpp_continues_english_as_transformers_does(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = export_gguf(checkpoint, "f32")
    eighth = checkpoint / "model-q8_0.gguf"
    assert GGUFReader(exact).fields["general.architecture"].contents() == "deci"
    tokens, logprobs, continued = expected(checkpoint)
    ids = tokens[0].tolist()
    first = tokens.shape[1] - 4
    questions = {
        "tokens": ids,
        "first": first,
        "plain": 28,
        "prompt": TEXT,
        "new_tokens": NEW_TOKENS,
        "texts": [TEXT],
    }
    answers = {gguf.stem: llama_cpp(gguf, **questions) for gguf in (exact, eighth)}
    with capsys.disabled():
        for name, found in answers.items():
            print(f"\nllama.cpp, {name}: {TEXT} …{found['text']}")
    differences = {
        name: torch.tensor(found["logprobs"]) - logprobs[first:] for name, found in answers.items()
    }
    assert differences["model-f32"].abs().max() <= 1e-3
    assert answers["model-f32"]["greedy"] == continued
    assert answers["model-f32"]["ids"] == answers["model-q8_0"]["ids"] == [ids]
    # With the type q8_0, the weights have 8 bits, and llama.cpp also rounds the activations to 8
    # bits. So the log-probabilities of all ids of the vocabulary differ from those of transformers
    # by 0.15 on average, mostly for improbable ids. Therefore, this test compares the
    # Kullback-Leibler divergence, which weights each id with its probability.
    divergence = -(logprobs[first:].exp() * differences["model-q8_0"]).sum(dim=-1).mean()
    assert divergence <= 0.02
