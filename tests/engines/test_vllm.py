"""vLLM runs pruned checkpoints without `trust_remote_code` if flap is installed.

`make engines` makes the checkpoints in the main environment, and runs these tests in the
environment of vLLM.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.cases import BY_LAYER, NO_BIASES, REFUSED
from tests.engines.expected import Expected
from tests.engines.served import logprobs, served

CHECKPOINTS = Path(__file__).parents[2] / "build" / "engines"
NAMES = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))


def options(name: str) -> dict[str, Any]:
    """Return the options with which vLLM runs a checkpoint.

    By default, vLLM runs a stock checkpoint (one without code of flap) in vLLM's own class for the
    family. The tests choose vLLM's Transformers backend instead, except for Granite, because this
    backend does not apply Granite's logits_scaling.
    """
    return (
        {"model_impl": "transformers"}
        if name.endswith("-stock") and not name.startswith("granite")
        else {}
    )


def assert_same_texts(name: str, **changes: Any) -> list[Any]:
    """Check that vLLM generates the same texts as transformers, with equal log-probabilities.

    Also check that vLLM generates the same texts again if it reads the prompts from its prefix
    cache, and return the outputs of this second run.
    """
    expected = Expected.of(CHECKPOINTS / name)
    outputs, again = served(CHECKPOINTS / name, expected.prompts_NT, **options(name) | changes)
    generated = [list(output.outputs[0].token_ids) for output in outputs]
    assert generated == expected.generated_NT.tolist()
    # Massive activations increase the rounding errors of some tokens, so the tolerance grows with
    # the size of the log-probability (`rtol`). At the third token of SmolLM2's first prompt, the
    # log-probability is -17.16, and rounding in float32 alone changes it by 4e-4.
    torch.testing.assert_close(
        torch.tensor([*map(logprobs, outputs)]), expected.logprobs_NT, rtol=3e-4, atol=1e-3
    )
    assert [list(output.outputs[0].token_ids) for output in again] == generated
    return again


def test_there_are_checkpoints() -> None:
    layers = {
        name.removesuffix("-layers")
        for name in NAMES
        if name.endswith("-layers") and name not in REFUSED
    }
    families = layers - {"round"}
    assert len(families) == 15 + len(BY_LAYER)
    assert {f"{family}-stock" for family in families.difference(BY_LAYER)} <= set(NAMES)
    assert {f"{family}-no-biases" for family in NO_BIASES} <= set(NAMES)
    assert "mixtral-experts" in NAMES
    assert {*REFUSED, "llama-split", "smollm2-flap", "smollm2-flap_plus", "smollm2-trimmed"} <= set(
        NAMES
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_it_computes_what_transformers_computes(name: str) -> None:
    again = assert_same_texts(name)
    # Only LLaMA and SmolLM2 are checked, because they have no sliding window. With a sliding
    # window, vLLM keeps no part of a prompt in its prefix cache.
    if name.startswith(("llama", "smollm2")):
        assert all(output.num_cached_tokens >= 32 for output in again)


def test_two_processes_compute_it_together() -> None:
    assert_same_texts("llama-split", tensor_parallel_size=2, distributed_executor_backend="mp")


def test_widths_that_two_processes_cannot_split() -> None:
    """If widths are odd, two processes of vLLM cannot divide the checkpoint.

    The error is raised in the process that creates the engine, not in a worker of the engine.
    """
    with pytest.raises(
        RuntimeError,
        match=r"^vLLM: .*=2: serve with tensor_parallel_size=1, or prune with round_to=8$",
    ):
        assert_same_texts("llama-layers", tensor_parallel_size=2, distributed_executor_backend="mp")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_with_what_words(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=REFUSED[name]):
        served(CHECKPOINTS / name, Expected.of(CHECKPOINTS / name).prompts_NT)
