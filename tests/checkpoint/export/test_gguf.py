"""A GGUF export gives the same results in llama.cpp as the checkpoint in transformers."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.quants import dequantize, quantize
from transformers import GenerationConfig, PreTrainedTokenizerFast

from flap.checkpoint.export.gguf.export import export_gguf
from flap.method.allocation import ALAM, ULUM
from tests.helpers.gguf_cases import LINEAR, LLAMA3, TOKENS, YARN, Exported, checkpoint
from tests.helpers.llama_cpp import llama_cpp
from tests.helpers.marks import quick
from tests.helpers.tokenizers import KINDS, SPACES, TRICKY

UNIFORM = {"structure": ULUM()}
ROPES = {"llama3": LLAMA3, "linear": LINEAR, "yarn": YARN}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return KINDS["smollm"]()


def run(gguf: Path) -> tuple[torch.Tensor, list[int]]:
    """Run llama.cpp on a GGUF file.

    Return the log-probabilities after each token of TOKENS, and the twelve tokens with which
    llama.cpp continues TOKENS greedily.
    """
    tokens = TOKENS[0].tolist()
    found = llama_cpp(gguf, tokens=tokens, plain=65, prompt=tokens, new_tokens=12)
    return torch.tensor(found["logprobs"]), found["greedy"]


def architecture(gguf: Path) -> str:
    return GGUFReader(gguf).fields["general.architecture"].contents()


def assert_computes_the_same(exported: Exported, arch: str, tolerance: float = 1e-3) -> None:
    gguf = export_gguf(exported.directory, "f32")
    assert architecture(gguf) == arch
    logprobs, greedy = run(gguf)
    expected = exported.logprobs()
    assert logprobs.shape == expected.shape
    assert (logprobs - expected).abs().max() <= tolerance
    assert greedy == exported.greedy()


@pytest.mark.parametrize("uniform", [False, True], ids=["by-layer", "uniform"])
@pytest.mark.parametrize(
    "name",
    quick(2, ["llama-gqa-biases", "qwen2-gqa-tied", "llama-mha", "llama-gqa", "mistral-gqa"]),
)
def test_same_logits(
    name: str, uniform: bool, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    exported = checkpoint(tmp_path / "pruned", name, words, **UNIFORM if uniform else {})
    assert_computes_the_same(exported, "llama" if uniform else "deci")


@pytest.mark.parametrize("rope", quick(1, ROPES))
@pytest.mark.parametrize("uniform", [False, True], ids=["by-layer", "uniform"])
def test_scaled_rope(
    uniform: bool, rope: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    options = UNIFORM if uniform else {}
    exported = checkpoint(
        tmp_path / "pruned", "llama-gqa", words, **options, rope_parameters=ROPES[rope]
    )
    assert_computes_the_same(exported, "llama" if uniform else "deci")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama-gqa", "f16"), ("llama-gqa", "q8_0"), ("llama-gqa", "bf16"), ("llama-mha", "q8_0")],
)
def test_smaller_types(
    name: str, kind: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    exported = checkpoint(tmp_path / "pruned", name, words)
    gguf = export_gguf(exported.directory, kind)
    logprobs, _ = run(gguf)
    assert (logprobs - exported.logprobs()).abs().mean() <= 0.05
    assert gguf.stat().st_size < export_gguf(exported.directory, "f32").stat().st_size


@pytest.mark.parametrize("kind", ["q5_1", "q5_0", "q4_1", "q4_0"])
@torch.no_grad()
def test_types_of_few_bits(kind: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """llama.cpp gives the same results as transformers if both use the same rounded weights.

    The tolerance is wide, because llama.cpp also rounds the activations before a matrix product.
    """
    exported = checkpoint(tmp_path / "pruned", "llama-gqa", words, structure=ALAM(round_to=32))
    file = export_gguf(exported.directory, kind)
    type_ = GGMLQuantizationType[kind.upper()]
    for tensor in GGUFReader(file).tensors:
        if "ffn" in tensor.name and len(tensor.shape) == 2:
            assert tensor.tensor_type == type_
    for weight in exported.model.parameters():
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            rounded = dequantize(quantize(weight.numpy(), type_), type_)
            weight.copy_(torch.from_numpy(rounded))
    logprobs, _ = run(file)
    assert (logprobs - exported.logprobs()).abs().mean() <= 0.05


def test_matrices_that_q8_0_cannot_hold_are_f16_and_counted(
    words: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported = checkpoint(tmp_path / "pruned", "llama-gqa", words)
    tensors = GGUFReader(export_gguf(exported.directory, "q8_0")).tensors
    types = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    odd = {matrix.name for matrix in matrices if matrix.shape[0] % 32}
    assert "blk.0.ffn_down.weight" in odd
    for name in odd:
        assert types.pop(name) == "F16"
    assert set(types.values()) == {"Q8_0", "F32"}
    warning = f"{len(odd)} of 29 matrices are f16, because their rows do not divide into"
    assert warning in caplog.text


@pytest.mark.parametrize(
    "kind",
    [
        "smollm",
        "llama-bpe",
        "qwen2",
        "gpt2",
        "llama-spm",
        "llama-spm-legacy",
        "llama-spm-file",
        "gemma",
    ],
)
def test_llama_cpp_tokenizes_as_transformers_does(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    exported = checkpoint(tmp_path / "pruned", "llama-gqa", tokenizer)
    texts = TRICKY if kind == "llama-spm" else TRICKY + SPACES
    found = llama_cpp(export_gguf(exported.directory, "f16"), texts=texts)["ids"]
    assert found == [tokenizer(text).input_ids for text in texts]


def test_unused_ids_and_the_chat_template_are_written(tmp_path: Path) -> None:
    tokenizer = KINDS["llama-spm"]()
    templates = {"default": "{{ messages[0].content }}", "tools": "{{ tools }}"}
    tokenizer.chat_template = templates
    gguf = export_gguf(checkpoint(tmp_path / "pruned", "llama-gqa", tokenizer).directory)
    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    assert fields["tokenizer.chat_template"] == templates["default"]
    assert fields["tokenizer.chat_template.tools"] == templates["tools"]

    used = len(tokenizer)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:used] == tokenizer.convert_ids_to_tokens(range(used))
    assert tokens[-1] == "[PAD511]"
    types = fields["tokenizer.ggml.token_type"]
    assert set(types[used:]) == {TokenType.UNUSED}
    assert types[0] == TokenType.UNKNOWN
    assert types[1] == TokenType.CONTROL
    assert types[3] == TokenType.BYTE
    assert types[259] == TokenType.NORMAL


@pytest.mark.parametrize(
    ("of_tokenizer", "eos", "eot"),
    [
        (7, 7, 9),
        (9, 9, 7),
        (11, 7, 9),
    ],
)
def test_all_tokens_that_end_a_text_of_generate_end_it(
    of_tokenizer: int, eos: int, eot: int, tmp_path: Path
) -> None:
    words = KINDS["smollm"]()
    exported = checkpoint(tmp_path / "pruned", "llama-gqa", words)
    words.eos_token = words.convert_ids_to_tokens(of_tokenizer)
    words.save_pretrained(exported.directory)
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(exported.directory)
    fields = GGUFReader(export_gguf(exported.directory, "f32")).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == eos
    assert fields["tokenizer.ggml.eot_token_id"].contents() == eot
