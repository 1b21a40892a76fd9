"""Every placement gives the plan and the tensors of a run in memory, bit for bit; a streamed run holds one layer."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.models import OnDisk
from flap.pipeline import run
from flap.results import Report
from tests.cases import random_model, tiny_model
from tests.helpers.runs import composed, tiny
from tests.helpers.zero_shot_toys import only_toys
from tests.models.families.every import EVERY

# Of each family, the variant with most of its own.
FAMILIES = {family.__name__: list(family.configs.values())[-1] for family in EVERY}
# One family of each kind: how its modules hold their weights, and how its layers are called. Of each other one the
# contract holds that a walk through its layers is one pass and that it reloads as it was; its runs here are `long`.
KINDS = [
    "TestLlama", "TestOlmo2", "TestPhi3", "TestOPT", "TestGPT2", "TestFalcon", "TestMixtral", "TestGptOss",
    "TestQwen3Next", "TestFalconH1",
]  # fmt: skip
# Searches copy layers and fit them: ordinary ones, transposed ones, experts, linear attention.
SEARCHED = ["TestLlama", "TestGPT2", "TestMixtral", "TestQwen3Next"]
FLAP_PLUS = "flap_plus calibration.num_samples=20"
CLOSED_FORM = "flap calibration.num_samples=20 metric=OBS structure.scale=relative compensation=linear"
CHOICES = [
    "round_to=8 structure.min_heads=2",
    "method=wanda_sp",
    "method=mag_sp",
    "compensation=linear",
    "metric=OBS",
    "mask_only=true",
    "ratio=0",
]
CHOICES_TOO = [
    "structure=UL-UM",
    "structure.scale=relative metric.square_attention=false",
    "metric=random structure=UL-MM",
    "method=wanda_sp compensation=linear",
    "method=wanda_sp metric=magnitude",
]
ModelOf = Callable[[PreTrainedModel], Path]


def tensors(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def pruned(placement: str, model: Path, text: Path, root: Path, *more: str) -> Report:
    """One run with a cache of its own, so that nothing is taken over from the other placement."""
    options = [f"model.placement={placement}", f"cache_dir={root / f'cache-{placement}'}", "calibration.batch_size=3"]
    options.append("eval.perplexity.max_tokens=320")
    return run(composed(*tiny(model, text), "ratio=0.4", *options, *more), root / placement)


def assert_equal_runs(root: Path, reports: dict[str, Report]) -> None:
    (first, a), (second, b) = reports.items()
    for name in ("plan.json", "checkpoint/config.json", "checkpoint/generation_config.json"):
        assert (root / first / name).read_text() == (root / second / name).read_text()
    found, expected = tensors(root / second / "checkpoint"), tensors(root / first / "checkpoint")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for field in (
        "evaluation",
        "difference_stderr",
        "parameters",
        "ratio",
        "layers",
        "layers_before",
        "repairs",
    ):
        assert getattr(a, field) == getattr(b, field), field


@pytest.fixture
def model_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> ModelOf:
    def make(model: PreTrainedModel) -> Path:
        model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A host that has room for half of a model: accelerate leaves the other half on disk."""

    def half_of(model: Path) -> None:
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        monkeypatch.setattr("flap.models.placement.spread.free_bytes", lambda device: size * 6 // 10)

    return half_of


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *product(sorted({*KINDS} - {*SEARCHED}), ["flap"]),
        *product(SEARCHED, [FLAP_PLUS]),
        *(pytest.param(family, "flap", marks=pytest.mark.long) for family in SEARCHED),
        *(pytest.param(family, FLAP_PLUS, marks=pytest.mark.long) for family in KINDS if family not in SEARCHED),
        pytest.param("TestMixtral", CLOSED_FORM, marks=pytest.mark.long),
        *(pytest.param(family, "flap", marks=pytest.mark.long) for family in FAMILIES if family not in KINDS),
    ],
)
def test_all_placements_give_equal_checkpoints(
    family: str, method: str, model_of: ModelOf, little_memory, text_file: Path, tmp_path: Path
) -> None:
    model = model_of(random_model(FAMILIES[family]))
    assert len(list(model.glob("*.safetensors"))) > 2  # layers lie across shards
    little_memory(model)
    options = f"method={method}".split()
    reports = {one: pruned(one, model, text_file, tmp_path, *options) for one in ("device", "auto", "stream")}
    for one in ("auto", "stream"):
        assert_equal_runs(tmp_path, {"device": reports["device"], one: reports[one]})
        assert reports[one].statistics_cache == ("miss" if method == "flap" else "off")
    assert not reports["device"].device_map and not reports["stream"].device_map
    assert set(reports["auto"].device_map.values()) == {"cpu", "disk"}
    assert "modules on cpu: " in (tmp_path / "auto" / "report.md").read_text()
    gc.collect()  # accelerate's hooks hold the model in a circle
    offloaded = tmp_path / "cache-auto" / "offload"
    assert not [path for path in offloaded.iterdir() if path.is_dir()]  # a lock stays as long as its process


def test_all_of_a_model_is_on_disk(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    """Also the embeddings and the head that is tied to them, which are written once."""
    model = model_of(tiny_model("llama-gqa"))
    monkeypatch.setattr("flap.models.placement.spread.free_bytes", lambda device: 1000)
    reports = {one: pruned(one, model, text_file, tmp_path, "method=flap_plus") for one in ("device", "auto")}
    assert set(reports["auto"].device_map.values()) == {"disk"}
    assert_equal_runs(tmp_path, reports)


def test_a_model_that_is_all_on_disk_is_measured(
    model_of: ModelOf, monkeypatch: pytest.MonkeyPatch, text_file: Path, tmp_path: Path
) -> None:
    """By what runs whole models, too: the numbers are those of a model in memory, and a tied head counts once."""
    model = model_of(tiny_model("llama-gqa"))
    monkeypatch.setattr("flap.models.placement.spread.free_bytes", lambda device: 1000)
    measurements = ["eval=[efficiency,generate,zero_shot]", "eval.zero_shot.tasks=[animals]"]
    request = ["prefill_len=8", "decode_len=3", "repeats=1"]
    options = [*measurements, "eval.generate.max_new_tokens=4", *(f"eval.efficiency.{option}" for option in request)]
    inputs = [one for one in tiny(model, text_file) if not one.startswith("eval")]

    def measured(placement: str) -> Report:
        place = [f"model.placement={placement}", f"cache_dir={tmp_path / placement}"]
        with only_toys(tmp_path):
            return run(composed(*inputs, *options, *place), tmp_path / f"run-{placement}")

    reports = {placement: measured(placement) for placement in ("device", "auto")}
    assert set(reports["auto"].device_map.values()) == {"disk"}
    for which in ("dense", "pruned"):
        expected, found = (report.evaluation[which] for report in reports.values())
        assert found.keys() == expected.keys()
        steady = [name for name in expected if not any(word in name for word in ("second", "latency", "peak"))]
        assert {"efficiency/parameters", "efficiency/checkpoint_bytes", "animals/acc"} < {*steady}
        assert [found[name] for name in steady] == pytest.approx([expected[name] for name in steady])
    assert reports["auto"].continuations == reports["device"].continuations


@pytest.mark.parametrize("choice", [*CHOICES, *(pytest.param(one, marks=pytest.mark.long) for one in CHOICES_TOO)])
def test_every_way_to_prune_at_every_placement(
    choice: str, model_of: ModelOf, little_memory, text_file: Path, tmp_path: Path
) -> None:
    model = model_of(tiny_model("llama-gqa"))
    little_memory(model)
    reports = {one: pruned(one, model, text_file, tmp_path, *choice.split()) for one in ("device", "auto", "stream")}
    for one in ("auto", "stream"):
        assert_equal_runs(tmp_path, {"device": reports["device"], one: reports[one]})
    assert "disk" in reports["auto"].device_map.values()
    assert bool(reports["stream"].repairs) == ("linear" in choice or "flap_plus" in choice)


@pytest.mark.parametrize("placement", ["auto", "stream"])
def test_half_precision(placement: str, model_of: ModelOf, little_memory, text_file: Path, tmp_path: Path) -> None:
    model = model_of(tiny_model("qwen2-mha").to(torch.bfloat16))
    little_memory(model)
    assert_equal_runs(tmp_path, {one: pruned(one, model, text_file, tmp_path) for one in ("device", placement)})
    assert {tensor.dtype for tensor in tensors(tmp_path / placement / "checkpoint").values()} == {torch.bfloat16}


@pytest.mark.parametrize("choice", ["method=flap", "method=wanda_sp", "method=flap_plus"])
def test_one_layer_or_the_rest_is_in_memory(
    choice: str, model_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[set[str]] = []
    visits: list[int] = []
    layer, ends = OnDisk.layer, OnDisk.ends

    def note(placed: OnDisk) -> None:
        there = {name for name, parameter in placed.model.named_parameters() if parameter.device.type != "meta"}
        held.append({name.split(".")[2] if "layers" in name else "rest" for name in there})

    @contextmanager
    def noted_layer(self: OnDisk, index: int) -> Iterator[nn.Module]:
        visits.append(index)
        with layer(self, index) as present:
            note(self)
            yield present
            note(self)

    @contextmanager
    def noted_ends(self: OnDisk) -> Iterator[None]:
        with ends(self):
            note(self)
            yield
            note(self)

    monkeypatch.setattr(OnDisk, "layer", noted_layer)
    monkeypatch.setattr(OnDisk, "ends", noted_ends)
    pruned("stream", model_dir, text_file, tmp_path, choice)
    assert all(len(parts) == 1 for parts in held), held
    assert set.union(*held) == {*"0123", "rest"}
    assert len({visits.count(i) for i in range(4)}) == 1
    if choice == "method=flap":
        assert (
            visits.count(0) == 6
        )  # to calibrate, score, compress and write; to compare what it was with what is there


def test_statistics_are_shared_with_runs_in_memory(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = (*tiny(model_dir, text_file), f"cache_dir={tmp_path / 'cache'}")
    run(composed(*arguments), tmp_path / "device")
    report = run(composed(*arguments, "model.placement=stream"), tmp_path / "stream")
    assert report.statistics_cache == "hit"
    assert json.loads((tmp_path / "stream" / "plan.json").read_text()) == json.loads(
        (tmp_path / "device" / "plan.json").read_text()
    )


def test_nothing_but_the_results_is_left(model_dir: Path, text_file: Path, tmp_path: Path) -> None:
    pruned("stream", model_dir, text_file, tmp_path)
    assert {path.name for path in (tmp_path / "stream").iterdir()} == {
        "checkpoint", "documents.json.gz", "evaluation.json", "layers.png", "plan.json", "report.json", "report.md",
    }  # fmt: skip
    assert not [path for path in (tmp_path / "cache-stream" / "streams").iterdir() if path.suffix != ".lock"]
    index = json.loads((tmp_path / "stream" / "checkpoint" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "stream" / "checkpoint"))
