"""Pruned checkpoints in vLLM, which has nothing but this package beside it: no `trust_remote_code`.

`make engines` makes the checkpoints in the main environment and runs this in that of vLLM.
"""

from pathlib import Path

import pytest
import torch

from tests.engines.served import Expected, logprobs, served

CHECKPOINTS = Path(__file__).parents[2] / "build" / "engines"
NAMES = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))
REFUSED = {  # by vLLM, with its words
    "gemma2-stock": "There is no module or parameter named 'lm_head' in Gemma2ForCausalLM",
}


def options(name: str) -> dict[str, str]:
    """Stock checkpoints in the Transformers backend, too; but Granite, whose logits it does not divide."""
    return {"model_impl": "transformers"} if name.endswith("-stock") and not name.startswith("granite") else {}


def test_there_are_checkpoints() -> None:
    assert {"llama-layers", "llama-stock", "llama-no-attention", "smollm2-flap"} <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_it_computes_what_transformers_computes(name: str) -> None:
    expected = Expected.of(CHECKPOINTS / name)
    outputs, again = served(CHECKPOINTS / name, expected.prompts_NT, **options(name))
    generated = [list(output.outputs[0].token_ids) for output in outputs]
    assert generated == expected.generated_NT.tolist()
    torch.testing.assert_close(torch.tensor([*map(logprobs, outputs)]), expected.logprobs_NT, rtol=0, atol=1e-3)
    if name.startswith(("llama", "smollm2")):  # a sliding window leaves nothing of a prompt to be found again
        assert all(output.num_cached_tokens >= 32 for output in again)
    assert [list(output.outputs[0].token_ids) for output in again] == generated


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses_and_with_what_words(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=REFUSED[name]):
        served(CHECKPOINTS / name, Expected.of(CHECKPOINTS / name).prompts_NT)
