"""At every `model.placement`, a model computes the same outputs as when transformers loads it.

While a layer is in use, its weights are in memory.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from accelerate.utils import OffloadedWeightsLoader
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.checkpoint.save import make_label, save_checkpoint
from flap.method.allocation import LayerPlan
from flap.method.compression import NoCompensation, slice_layer
from flap.models import (
    PLACEMENTS,
    ModelAdapter,
    OnDisk,
    PlacedModel,
    Resident,
    Spread,
    adapt,
    open_checkpoint,
    read_model,
)
from flap.models.forward import enter
from flap.storage.atomic_files import remove_unused
from flap.storage.locks import lock_of
from tests.cases import tiny_model, tokens
from tests.helpers.placed import placed_at
from tests.helpers.pruned import logits, prune

ARCHITECTURES = ["llama-gqa-biases", "mistral-mha-tied", "mixtral"]
BATCHES = tokens(seed=7).split(4)  # the first batch has four windows, and the second batch two


def on_the_host(directory: Path) -> Spread:
    """Return a model with layers 1 and 2 offloaded to the CPU, as with a GPU that is too small.

    All other layers are also on the CPU, which stands for the GPU in these tests.
    """
    model = read_model(directory)
    names = [name for name, _ in model.named_children() if name != "model"]
    names += [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    names += [f"model.layers.{i}" for i in range(len(model.model.layers))]
    waiting = {name: name.endswith(("layers.1", "layers.2")) for name in names}
    weights = OffloadedWeightsLoader(state_dict=dict(model.state_dict()))
    attach_align_device_hook_on_blocks(
        model, dict.fromkeys(["", *names], "cpu"), waiting, weights_map=weights
    )
    model.hf_device_map = {name: "cpu" if waits else 0 for name, waits in waiting.items()}
    return Spread(model)


def partly_on_disk(directory: Path) -> PlacedModel:
    """Return a model that accelerate puts partly on disk.

    The patched `free_bytes` returns only the memory that the weights need. accelerate keeps some of
    this memory free, so a part of the weights goes to the disk.
    """
    size = (directory / "model.safetensors").stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flap.models.placement.spread.free_bytes", lambda device: size)
        placed = placed_at("auto", directory)
    assert set(placed.device_map.values()) == {"cpu", "disk"}
    return placed


PLACES: dict[str, Callable[[Path], PlacedModel]] = {
    "device": partial(placed_at, "device"),
    "auto, on the host": on_the_host,
    "auto, on disk": partly_on_disk,
    "stream": partial(placed_at, "stream"),
}


@pytest.fixture(scope="module")
def directories(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ARCHITECTURES:
        tiny_model(name).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    """Return, for each architecture in turn, the directory of a saved model."""
    return directories[request.param]


@pytest.fixture(params=PLACES)
def placed(request: pytest.FixtureRequest, directory: Path) -> PlacedModel:
    """Return the model in `directory`, at each placement of PLACES in turn."""
    made = PLACES[request.param](directory)
    assert type(made) is PLACEMENTS[request.param.split(",")[0]]
    return made


@pytest.fixture
def plain(directory: Path) -> PreTrainedModel:
    """Return the model in `directory`, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(directory)


def devices(module: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in module.parameters()}


def assert_holds(layer: nn.Module, expected: nn.Module) -> None:
    found = dict(layer.named_parameters())
    wanted = dict(expected.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def change(adapter: ModelAdapter, i: int) -> None:
    """Remove heads and neurons from layer i, and add a bias to its attention output."""
    attention, mlp = adapter.blocks(i)
    neurons = mlp.num_units // len(mlp.members)
    kept = tuple(n for n in range(mlp.num_units) if n % neurons < neurons // 3)
    slice_layer(
        adapter, i, LayerPlan(tuple(range(0, attention.num_units, 2)), kept), NoCompensation(), None
    )
    adapter.layers[i].self_attn.o_proj.bias = nn.Parameter(torch.arange(32.0))


def test_a_layer_is_present_inside_its_block_and_gone_after_it(
    placed: PlacedModel, plain: PreTrainedModel
) -> None:
    before = [devices(layer) for layer in placed.layers]
    waiting = [where == {"meta"} for where in before]
    assert (any(waiting), all(waiting)) == {
        Resident: (False, False),
        Spread: (True, False),
        OnDisk: (True, True),
    }[type(placed)]
    for i, expected in enumerate(plain.model.layers):
        with placed.layer(i) as layer:
            assert layer is placed.layers[i] and devices(layer) == {"cpu"}
            assert_holds(layer, expected)
            others = [devices(other) for j, other in enumerate(placed.layers) if j != i]
            assert others == before[:i] + before[i + 1 :]
        assert [devices(layer) for layer in placed.layers] == before


def test_a_layer_changed_inside_its_block_is_so_the_next_time(
    placed: PlacedModel, plain: PreTrainedModel
) -> None:
    before = [devices(layer) for layer in placed.layers]
    adapter = adapt(plain)
    for i in (0, 1):
        change(adapter, i)
        adapter.layers[i].self_attn.q_proj.bias = None
        with placed.layer(i) as layer:
            change(placed.adapter, i)
            layer.self_attn.q_proj.bias = None
        assert [placed.adapter.widths(j) for j in range(3)] == [adapter.widths(j) for j in range(3)]
    for i, expected in enumerate(adapter.layers):
        with placed.layer(i) as layer:
            assert_holds(layer, expected)
            assert placed.adapter.layer_config(i) == adapter.layer_config(i)
    assert [devices(layer) for layer in placed.layers] == before
    assert placed.adapter.num_parameters() == adapter.num_parameters()
    expected = torch.cat(
        [adapter.decoder(input_ids=batch_NT).last_hidden_state for batch_NT in BATCHES]
    )
    assert torch.equal(torch.cat(list(placed.hidden_states(BATCHES))), expected)


@torch.no_grad()
def test_a_copy_of_a_layer_is_changed_while_the_layer_stays(
    placed: PlacedModel, plain: PreTrainedModel
) -> None:
    with placed.ends():
        hidden_NTD, calls = enter(placed.adapter, BATCHES[0])
    own_copy = copy.deepcopy(plain.model.layers[1])
    doubled = 2 * plain.model.layers[1].self_attn.o_proj.weight
    own_copy.self_attn.o_proj.weight = nn.Parameter(doubled)
    with placed.layer(1) as layer:
        copied = placed.copy_layer(1)
        copied.self_attn.o_proj.weight = nn.Parameter(doubled.clone())
        assert torch.equal(
            calls[1](copied, hidden_NTD.clone()), calls[1](own_copy, hidden_NTD.clone())
        )
        assert_holds(layer, plain.model.layers[1])
    with placed.layer(1) as layer:
        assert_holds(layer, plain.model.layers[1])


@torch.no_grad()
def test_it_computes_what_the_model_computes(placed: PlacedModel, plain: PreTrainedModel) -> None:
    states = placed.hidden_states(BATCHES)
    for batch_NT in BATCHES:
        hidden_NTD = next(states)
        assert torch.equal(hidden_NTD, plain.model(input_ids=batch_NT).last_hidden_state)
        # The LM head still has its weights while the caller uses the hidden states of a batch.
        assert torch.equal(placed.adapter.logits(hidden_NTD), plain(input_ids=batch_NT).logits)
    assert next(states, None) is None
    assert torch.equal(placed.logits(BATCHES[0]), plain(input_ids=BATCHES[0]).logits)


def test_embeddings_and_head_are_gone_after_their_block(
    directory: Path, plain: PreTrainedModel
) -> None:
    placed = placed_at("stream", directory)
    parts = (placed.model.get_input_embeddings, placed.model.get_output_embeddings)
    own = (plain.get_input_embeddings, plain.get_output_embeddings)
    with placed.ends():
        assert all(
            torch.equal(part().weight, expected().weight)
            for part, expected in zip(parts, own, strict=True)
        )
        assert all(devices(layer) == {"meta"} for layer in placed.layers)
    assert devices(placed.model) == {"meta"}
    tied = placed.model.get_output_embeddings().weight is placed.model.get_input_embeddings().weight
    assert tied == plain.config.tie_word_embeddings


def test_pruned_written_and_opened_again_it_is_what_the_model_becomes(
    placed: PlacedModel, plain: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = [devices(layer) for layer in placed.layers]
    plan = prune(plain, 0.4)
    assert prune(placed, 0.4) == plan
    assert [devices(layer) for layer in placed.layers] == before
    assert (
        type(placed.model) is type(plain)
        and placed.model.config.to_dict() == plain.config.to_dict()
    )
    assert torch.equal(placed.logits(tokens(seed=7)), logits(plain))
    after = save_checkpoint(placed, tokenizer, tmp_path / "pruned", make_label(plan.to_dict(), {}))
    # With weights on disk, save_checkpoint returns the saved checkpoint, opened again.
    assert type(after) is type(placed) and (after is placed) == (not placed.streams)
    assert torch.equal(after.logits(tokens(seed=7)), logits(plain))
    reopened = open_checkpoint(tmp_path / "pruned", placed.device, placed.work)
    # flap opens the checkpoint at the placement `stream`, because the weights of the model that was
    # saved may still be in memory.
    assert reopened.streams
    assert torch.equal(reopened.logits(tokens(seed=7)), logits(plain))
    assert torch.equal(logits(reopened.in_memory().model), logits(plain))
    loaded = load(tmp_path / "pruned")
    assert_holds(loaded, plain)
    assert torch.equal(logits(loaded), logits(plain))


def test_changed_layers_become_its_files(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `stream`, each changed layer is in a file of its own until the checkpoint is written.

    If possible, the files of the checkpoint are hard links to these files, and need no additional
    disk space. The files of the checkpoint are copies if the cache is on another disk, or if the
    tensors have different names in the checkpoint.
    """
    placed = placed_at("stream", directory, tmp_path / "work")
    for i in (0, 1):
        with placed.layer(i):
            change(placed.adapter, i)
    for name in ("shared", "copied"):
        (tmp_path / name).mkdir()
        placed.write(tmp_path / name)
        monkeypatch.setattr(
            "os.link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link"))
        )
    shared, copied = (
        {file.name: file for file in (tmp_path / name).iterdir()} for name in ("shared", "copied")
    )
    assert {name: file.read_bytes() for name, file in shared.items()} == {
        name: file.read_bytes() for name, file in copied.items()
    }
    # In memory, Mixtral's experts are stacked, but in the checkpoint they are separate. So the
    # files of this model are copies.
    links = 0 if directory.name == "mixtral" else 2
    assert sum(file.stat().st_nlink == 2 for file in shared.values()) == links
    assert all(file.stat().st_nlink == 1 for file in copied.values())


def test_a_block_that_fails_keeps_no_change(directory: Path, plain: PreTrainedModel) -> None:
    placed = placed_at("stream", directory)
    with pytest.raises(KeyboardInterrupt), placed.layer(1) as layer:
        layer.self_attn.o_proj.weight = nn.Parameter(
            torch.zeros_like(layer.self_attn.o_proj.weight)
        )
        raise KeyboardInterrupt
    assert devices(placed.layers) == {"meta"}
    with placed.layer(1) as layer:
        assert_holds(layer, plain.model.layers[1])


def test_weights_on_disk_are_used_and_those_of_dead_processes_are_removed(directory: Path) -> None:
    left = directory.parent / "cache" / "offload" / "left"
    left.mkdir(parents=True)
    lock_of(left).touch()
    placed = partly_on_disk(directory)
    own = Path(placed.model.offload_folder.name)
    assert own.parent == left.parent and not left.exists()
    assert not remove_unused(own)
