"""A `Walk` runs a model layer by layer, with the same hidden states as the model's forward pass.

An interrupted walk resumes at the first layer that is not finished.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flap.data import Batch
from flap.method.allocation import LayerPlan
from flap.method.compression import NoCompensation, slice_layer
from flap.models import PlacedModel, Resident, Stream, Walk
from flap.storage import WorkFolder
from tests.cases import ARCHITECTURES, MIXTURES, tiny_model, tokens
from tests.helpers.placed import Interruption, interrupted, placed_at

# Two texts, each with a batch of four windows and a batch of two windows.
BATCHES = {"one": Batch.of(tokens()).split(4), "other": Batch.of(tokens(seed=7)).split(4)}
PLACEMENTS = ["device", "stream"]
Visit = Callable[[int], object]


@torch.no_grad()
def by_itself(model: PreTrainedModel, batches: Sequence[Batch]) -> list[list[Tensor]]:
    """Return the inputs of each layer and of the last norm in the model's own forward pass.

    The result has one list for each layer, in order, and one list for the last norm. Each of these
    lists has one input tensor for each batch.
    """
    places: list[nn.Module] = [*model.model.layers, model.model.norm]
    seen: list[list[Tensor]] = [[] for _ in places]
    hooks = [
        place.register_forward_pre_hook(lambda _, args, held=held: held.append(args[0]))
        for place, held in zip(places, seen, strict=True)
    ]
    for batch in batches:
        model(input_ids=batch.tokens_NT)
    for hook in hooks:
        hook.remove()
    return seen


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def go(
    placed: PlacedModel, folder: Path | None, visit: Visit = id, changing: bool = False
) -> dict[str, Stream]:
    """Walk through the layers with one stream (hidden states of a text) for each text of BATCHES.

    In each layer, call `visit`, and then pass the hidden states of the streams through the layer.
    """
    walk = Walk(placed, "walk", WorkFolder(folder), changing)
    for name, batches in BATCHES.items():
        walk.enter(name, batches)
    streams = walk.streams
    for i in walk:
        visit(i)
        for stream in streams.values():
            stream.advance(i, placed.layers[i])
    return streams


def assert_same(found: dict[str, Stream], expected: dict[str, Stream]) -> None:
    for name in BATCHES:
        assert_equal(found[name].batches, expected[name].batches)


def hidden_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("hidden-*")}


@pytest.mark.parametrize("architecture", ARCHITECTURES | MIXTURES)
def test_streams_hold_what_the_models_own_forward_pass_holds(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = {name: by_itself(model, batches) for name, batches in BATCHES.items()}
    placed = Resident(model)
    walk = Walk(placed, "walk")
    streams = {name: walk.enter(name, batches) for name, batches in BATCHES.items()}
    for i in walk:
        for name, stream in streams.items():
            assert_equal(stream.batches, expected[name][i])
            # `outputs` computes the outputs of the layer without moving the stream to the next
            # layer.
            list(stream.outputs(i, placed.layers[i]))
            assert_equal(stream.batches, expected[name][i])
            stream.advance(i, placed.layers[i])
    for name, stream in streams.items():
        assert_equal(stream.batches, expected[name][-1])


@pytest.mark.parametrize("on_files", [False, True])
def test_a_fork_leaves_its_origin_alone(on_files: bool, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    placed = Resident(model)
    expected = by_itself(model, BATCHES["one"])
    walk = Walk(placed, "walk", WorkFolder(tmp_path if on_files else None))
    origin = walk.enter("origin", BATCHES["one"])
    forks = list[tuple[Stream, list[Tensor]]]()
    for i in walk:
        fork = origin.fork()
        other = copy.deepcopy(placed.layers[i])
        other.mlp.down_proj.weight.data *= -1
        fork.advance(i, other)
        assert_equal(origin.batches, expected[i])
        assert not any(map(torch.equal, fork.batches, expected[i + 1]))
        again = origin.fork()
        again.advance(i, placed.layers[i])
        assert_equal(again.batches, expected[i + 1])
        origin.advance(i, placed.layers[i])
        assert_equal(origin.batches, expected[i + 1])
        walk.replace(set(walk.streams) - {"origin"}, {"fork": fork})
        forks.append((fork, [batch_NTD.clone() for batch_NTD in fork.batches]))
    for fork, before in forks:
        assert_equal(fork.batches, before)


@pytest.mark.usefixtures("every_layer_is_recorded")
def test_replaced_streams_leave_the_others_alone(tmp_path: Path) -> None:
    placed = Resident(tiny_model("llama-gqa"))
    walk = Walk(placed, "walk", WorkFolder(tmp_path))
    streams = {"trial": walk.enter("trial", BATCHES["one"])}
    windows = walk.enter("windows", BATCHES["other"])
    for i in walk:
        windows.advance(i, placed.layers[i])
        forks = {name: streams["trial"].fork() for name in ("first", "second")}
        for fork in forks.values():
            fork.advance(i, placed.layers[i])
        walk.replace(streams, forks)
        assert walk.streams == {"windows": windows, **forks}
        walk.replace(forks, {"trial": forks["second"]})
        streams = {"trial": forks["second"]}
    assert hidden_files(tmp_path) == {windows.file, streams["trial"].file}


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_interrupted_walk_goes_on(
    placement: str, layer: int, model_dir: Path, tmp_path: Path
) -> None:
    """A resumed walk gives the same hidden states, bit for bit, as an undisturbed walk.

    No unused files stay in the folder of the walk.
    """
    placed = placed_at(placement, model_dir)
    folder = tmp_path / "walk"
    expected = go(placed, None)
    # Each layer is called for two batches of each of the two streams. So the fourth call processes
    # the second batch of the second stream.
    with interrupted(placed, layer, call=4), pytest.raises(Interruption):
        go(placed, folder)
    visited = list[int]()

    def visit(i: int) -> None:
        if visited:
            assert len(hidden_files(folder)) == len(BATCHES)
        visited.append(i)

    found = go(placed_at(placement, model_dir), folder, visit)
    assert visited == list(range(layer, 4))
    assert_same(found, expected)
    assert hidden_files(folder) == {stream.file for stream in found.values()}
    finished = go(placed, folder, lambda i: pytest.fail(f"layer {i} is visited again"))
    assert_same(finished, expected)
    assert {path.name for path in folder.iterdir()} == {*hidden_files(folder), "journal.json"}


def test_a_journal_that_nobody_can_read_is_a_first_start(model_dir: Path, tmp_path: Path) -> None:
    placed = placed_at("device", model_dir)
    expected = go(placed, tmp_path)
    before = hidden_files(tmp_path)
    for damaged in ("{", "[]", '{"layers_done": 2}'):
        (tmp_path / "journal.json").write_text(damaged)
        visited = list[int]()
        assert_same(go(placed, tmp_path, visited.append), expected)
        assert visited == [0, 1, 2, 3]
        assert len(hidden_files(tmp_path)) == len(BATCHES) and not hidden_files(tmp_path) & before


def cut(placed: PlacedModel) -> Visit:
    """Return a function that prunes the layer with a given index.

    The function removes the same heads and neurons from every layer.
    """
    plan = LayerPlan((0, 3), tuple(range(0, 56, 3)))
    return lambda i: slice_layer(placed.adapter, i, plan, NoCompensation(), None)


@pytest.mark.usefixtures("every_layer_is_recorded")
def test_an_interrupted_walk_that_changes_layers_goes_on_behind_them(
    model_dir: Path, tmp_path: Path
) -> None:
    resident = placed_at("device", model_dir)
    expected = go(resident, None, cut(resident), changing=True)
    work = tmp_path / "work"
    folder = tmp_path / "walk"
    placed = placed_at("stream", model_dir, work)
    with interrupted(placed, layer=2), pytest.raises(Interruption):
        go(placed, folder, cut(placed), changing=True)
    again = placed_at("stream", model_dir, work)
    # Simulate a kill after layer 2 was written, but before the walk has recorded this.
    with again.layer(2) as layer:
        layer.mlp.up_proj.weight = nn.Parameter(torch.zeros_like(layer.mlp.up_proj.weight))

    again = placed_at("stream", model_dir, work)
    visited = list[int]()
    take = cut(again)

    def visit(i: int) -> None:
        visited.append(i)
        assert torch.equal(again.layers[i].mlp.up_proj.weight, dense[i].mlp.up_proj.weight)
        take(i)

    dense = tiny_model("llama-gqa").model.layers
    assert_same(go(again, folder, visit, changing=True), expected)
    assert visited == [2, 3]
    assert again.adapter.num_parameters() == resident.adapter.num_parameters()
    assert torch.equal(again.logits(tokens()), resident.logits(tokens()))


def test_in_memory_changes_are_gone_with_the_process_so_that_nothing_is_kept(
    model_dir: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        placed = placed_at("device", model_dir)
        visited = list[int]()
        go(placed, tmp_path / "walk", visited.append, changing=True)
        assert visited == [0, 1, 2, 3]
    assert not (tmp_path / "walk").exists()


@pytest.mark.usefixtures("every_layer_is_recorded")
@pytest.mark.parametrize("damage", ["missing", "cut short", "changed", "of zeros"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_hidden_states_that_are_not_whole_are_not_trusted(
    placement: str, damage: str, model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    placed = placed_at(placement, model_dir)
    walk = Walk(placed, "walk", WorkFolder(tmp_path / "walk"))
    stream = walk.enter("one", BATCHES["one"])
    with interrupted(placed, 2), pytest.raises(Interruption):
        for i in walk:
            stream.advance(i, placed.layers[i])
    assert stream.file is not None
    journal = (tmp_path / "walk" / "journal.json").read_text()
    [file] = [path for path in (tmp_path / "walk").glob("hidden-*") if path.name in journal]
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        changed = {
            "cut short": content[:-4],
            "changed": content[:-1] + b"\x01",
            "of zeros": bytes(len(content)),
        }
        file.write_bytes(changed[damage])
    again = Walk(placed, "walk", WorkFolder(tmp_path / "walk"))
    assert again.layers_done == 0
    assert "the walk starts from the beginning" in caplog.text
    stream = again.enter("one", BATCHES["one"])
    assert_equal(stream.batches, by_itself(placed_at("device", model_dir).model, BATCHES["one"])[0])
