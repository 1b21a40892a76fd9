"""flap reads the same weight files of a directory as transformers does."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flap.checkpoint.export.checkpoint import Shards
from flap.models.weights import INDEX, check_weights, tensor_files
from tests.cases import tiny_model
from tests.helpers.forked import forked

EMBEDDINGS = "model.embed_tokens.weight"


def test_a_file_beside_the_weights_is_not_read(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.save_pretrained(tmp_path)
    save_file(
        {EMBEDDINGS: torch.full((96, 32), 7.0), "lora_A": torch.ones(2)},
        tmp_path / "previous.safetensors",
    )
    shards = Shards(tmp_path)
    assert torch.equal(shards.read(EMBEDDINGS), model.state_dict()[EMBEDDINGS])
    assert (
        set(shards.files.values()) == {tmp_path / "model.safetensors"}
        and "lora_A" not in shards.shapes
    )


def test_the_index_of_an_older_save_is_not_read(tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / INDEX).is_file() and len(set(tensor_files(tmp_path).values())) > 1
    model.save_pretrained(tmp_path)  # transformers removes the shards, but leaves their index
    check_weights(tmp_path)
    assert set(tensor_files(tmp_path).values()) == {tmp_path / "model.safetensors"}


def _check_without_permission(directory: Path) -> None:
    os.chdir(directory)  # paths must be relative, as another user cannot open the parent folders
    if os.geteuid() == 0:
        os.setuid(65534)  # root may read every file, so become the user nobody
    with pytest.raises(
        ValueError, match=r"^model\.safetensors cannot be opened \(Permission denied"
    ):
        check_weights(Path())


def test_a_file_without_permission_is_not_called_missing(tmp_path: Path) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "model.safetensors").chmod(0)
    assert forked(_check_without_permission, tmp_path) == 0
