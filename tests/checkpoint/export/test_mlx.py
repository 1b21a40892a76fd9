"""An MLX export gives the same results in mlx-lm as the checkpoint in transformers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from flap.checkpoint.export.mlx.export import export_mlx, mlx_config
from tests.cases import VOCAB
from tests.helpers.engine_cases import (
    CELLS,
    EVERY_FAMILY,
    FAMILIES,
    PROMPT,
    assert_refused,
    documented,
    expected_logprobs,
)
from tests.helpers.forked import command_line
from tests.helpers.gguf_cases import LINEAR, LLAMA3, Exported, checkpoint
from tests.helpers.mlx_engine import mlx_lm

TOKENS = PROMPT[0].tolist()
# The tolerance is wide for Gemma, because mlx-lm rounds the scale of its embeddings to bfloat16.
TOLERANCE = {"gemma3_text": 5e-3}
REFUSED = {"opt": "mlx: model_type=opt: mlx-lm runs this export with llama, mistral, qwen2"}


def test_the_table_names_what_is_refused() -> None:
    cells = documented("MLX")
    refused = {model_type for model_type, _ in CELLS if cells[model_type, "uniform"] == "no"}
    assert sorted(cells) == sorted(CELLS)
    assert refused == set(REFUSED)
    assert set(cells.values()) == {"yes", "no"}


@pytest.fixture(scope="module")
def answers(families: dict[tuple[str, str], Exported]) -> dict[str, Any]:
    questions = {}
    for cell, exported in families.items():
        if cell[0] not in REFUSED:
            folder = str(export_mlx(exported.directory))
            questions["/".join(cell)] = {"folder": folder, "tokens": TOKENS, "new_tokens": 12}
    return mlx_lm(questions)


@pytest.mark.long
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell[0] not in REFUSED], ids="-".join)
def test_same_logits(
    cell: tuple[str, str], families: dict[tuple[str, str], Exported], answers: dict[str, Any]
) -> None:
    found = answers["/".join(cell)]
    expected = expected_logprobs(families[cell])
    # `found` has the log-probabilities from two computations: one forward pass for all tokens
    # together, and one forward pass for each token, with a key-value cache.
    for logprobs in found["logprobs"]:
        assert (torch.tensor(logprobs) - expected).abs().max() <= TOLERANCE.get(cell[0], 1e-3)
    assert found["greedy"] == families[cell].greedy(PROMPT)


@pytest.mark.parametrize(
    "model_type", sorted(EVERY_FAMILY.keys() - FAMILIES.keys() | REFUSED.keys())
)
def test_every_other_family_is_refused_in_a_line(model_type: str) -> None:
    for config in EVERY_FAMILY[model_type].configs.values():
        with pytest.raises(
            ValueError, match=f"^mlx: model_type={model_type}: mlx-lm runs this export with llama, "
        ):
            mlx_config(config)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (LlamaConfig(hidden_act="gelu"), "hidden_act=gelu: mlx-lm runs this export with silu"),
        (
            LlamaConfig(rope_parameters=LINEAR | {"rope_type": "dynamic"}),
            "rope_type=dynamic: .*llama3",
        ),
        (MixtralConfig(rope_parameters=LINEAR), "rope_type=linear: .* with default"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "use_bidirectional_attention=True: "),
        (Gemma2Config(attn_logit_softcapping=None), "attn_logit_softcapping is given=False: "),
    ],
    ids=["activation", "rope", "rope of mixtral", "attention both ways", "without caps"],
)
def test_what_mlx_lm_computes_otherwise(config: PreTrainedConfig, line: str) -> None:
    with pytest.raises(ValueError, match=f"^mlx: {line}"):
        mlx_config(config)


def test_what_is_refused_leaves_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    exported = checkpoint(
        tmp_path / "pruned", "llama-gqa", tokenizer, vocab_size=VOCAB, hidden_act="gelu"
    )
    assert_refused(
        export_mlx, exported.directory, "^mlx: hidden_act=gelu: mlx-lm runs this export with silu"
    )


WIDE = {
    "hidden_size": 64,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
}


@pytest.mark.long
def test_mlx_lm_quantises_the_folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The command `mlx_lm convert` can quantise an export.

    The hidden size of the model is 64, because mlx-lm quantises a matrix only if the length of its
    rows is a multiple of the group size of the quantisation, which is 64 by default.
    """
    options = WIDE | {"vocab_size": VOCAB, "rope_parameters": LLAMA3}
    exported = checkpoint(tmp_path / "wide", "llama-gqa", tokenizer, **options)
    small = tmp_path / "small"
    done = command_line(tmp_path, str(exported.directory), "mlx", module="flap.checkpoint.export")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    command = [sys.executable, "-m", "mlx_lm", "convert"]
    command += ["--hf-path", str(folder), "--mlx-path", str(small)]
    command += ["--quantize", "--q-bits", "4", "--trust-remote-code"]
    subprocess.run(command, check=True, capture_output=True)
    found = mlx_lm({str(one): {"folder": str(one), "tokens": TOKENS} for one in (folder, small)})
    for one, tolerance in ((folder, 1e-4), (small, 1.0)):
        for logprobs in found[str(one)]["logprobs"]:
            assert (torch.tensor(logprobs) - expected_logprobs(exported)).abs().mean() <= tolerance
    whole_size = (folder / "model.safetensors").stat().st_size
    assert (small / "model.safetensors").stat().st_size < whole_size
