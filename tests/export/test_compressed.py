"""What is refused before llm-compressor runs, and what it is given; `make engines` runs it, and serves its folders."""

import json
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flap.allocation import ALAM
from flap.export.compressed import export_compressed
from tests.helpers.engine_cases import family_checkpoint
from tests.helpers.gguf_cases import checkpoint

SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 384}
STANDS_IN = """#!{python}
import json, pathlib, sys
source, target, scheme, *ignored = sys.argv[4:]
files = sorted(file.name for file in pathlib.Path(source).iterdir())
(pathlib.Path(target) / "seen.json").write_text(json.dumps([files, scheme, ignored]))
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A python that notes what it is told."""
    script = tmp_path / "python"
    script.write_text(STANDS_IN.format(python=sys.executable))
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("tied", [False, True])
def test_what_llm_compressor_is_given(
    tied: bool, python: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The files that make the checkpoint, and no other ones; all matrices of the decoder layers, and no other ones.

    A tied head is in no file, but transformers reads a head with a scale unless it is told not to.
    """
    directory = checkpoint(tmp_path / "pruned", "llama-gqa", tokenizer, tie_word_embeddings=tied).directory
    (directory / "model-f16.gguf").write_text("")
    folder = export_compressed(directory, "W8A8", python)
    assert folder == directory / "compressed-tensors-W8A8"
    files, scheme, ignored = json.loads((folder / "seen.json").read_text())
    assert {"config.json", "model.safetensors", "modeling_flap.py", "tokenizer.json"} <= set(files)
    assert "model-f16.gguf" not in files and scheme == "W8A8" and ignored == ["lm_head", "model.embed_tokens"]
    assert not [path for path in directory.iterdir() if path.is_dir() and path != folder]


def test_rows_that_groups_do_not_divide(python: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    odd = checkpoint(tmp_path / "odd", "llama-gqa", tokenizer, **SIZES).directory
    line = (
        "W4A16 takes rows of a multiple of 128, and .* prune with round_to=128 structure.multiple_of_heads=2, or take"
    )
    with pytest.raises(ValueError, match=line):
        export_compressed(odd, "W4A16", python)
    rounded = ALAM(round_to=128, multiple_of_heads=2)
    export_compressed(
        checkpoint(tmp_path / "even", "llama-gqa", tokenizer, rounded, **SIZES).directory, "W4A16", python
    )
    narrow = checkpoint(tmp_path / "narrow", "llama-gqa", tokenizer).directory
    with pytest.raises(ValueError, match="take another scheme, as hidden_size=32 is none"):
        export_compressed(narrow, "W4A16", python)


def test_what_is_refused(python: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "pruned", "llama-gqa", tokenizer).directory
    with pytest.raises(
        ValueError, match=r"No module named 'llmcompressor'; pip install llmcompressor in an environment"
    ):
        export_compressed(directory, "W8A8", sys.executable)
    with pytest.raises(ValueError, match=r"^--python=nowhere: expected the python of an environment"):
        export_compressed(directory, "W8A8", "nowhere")
    mixture = family_checkpoint("mixtral", "uniform", tokenizer, tmp_path / "mixture").directory
    with pytest.raises(ValueError, match=r"experts.* is no weight of a Linear, and only those can be quantised"):
        export_compressed(mixture, "W8A8", python)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match=r"takes plain weights, and those of this checkpoint are fp8"):
        export_compressed(directory, "W8A8", python)
    assert not [path for path in directory.iterdir() if path.is_dir()]
