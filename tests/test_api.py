"""The same work from Python: flap.prune and flap.load on a model in memory."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import flap
from flap.allocation import ALAM, ULUM
from flap.calibration import Statistics
from flap.compression import BiasCompensation
from flap.config import config_dir
from flap.importance import WIFV, Metric
from flap.models import adapt
from flap.pipeline import run
from flap.reporting import Report
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.helpers.runs import composed, tiny


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=tokens(seed=7)).logits


@pytest.fixture
def text(text_file: Path) -> dict[str, object]:
    return {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}


def test_prune_save_load(tokenizer: PreTrainedTokenizerFast, text: dict, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    dense = logits(model)
    report = flap.prune(model, tokenizer, ratio=0.5, metric="IFV", structure="AL-MM", **text)
    assert isinstance(report, Report)
    assert report.config["metric"]["_target_"] == "flap.importance.IFV"
    assert report.ratio["requested"] == 0.5
    assert adapt(model).num_parameters() == report.parameters["decoder_after"] < report.parameters["decoder_before"]
    assert report.parameters["total_after"] == sum(p.numel() for p in model.parameters())
    assert abs(report.ratio["realised_decoder"] - 0.5) <= 96 / 46080  # one neuron
    pruned = logits(model)
    assert not torch.equal(pruned, dense)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(flap.load(tmp_path)), pruned)


def test_it_does_what_the_command_line_does(
    tokenizer: PreTrainedTokenizerFast, text: dict, model_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    run(composed(*tiny(model_dir, text_file), "ratio=0.35"), tmp_path)
    model = tiny_model("llama-gqa")
    flap.prune(model, tokenizer, ratio=0.35, **text)
    assert torch.equal(logits(flap.load(tmp_path / "checkpoint")), logits(model))


def test_objects_do_what_names_do(tokenizer: PreTrainedTokenizerFast, text: dict) -> None:
    named, given = tiny_model("llama-gqa"), tiny_model("llama-gqa")
    names = {"metric": "WIFV", "structure": "AL-AM", "compensation": "bias"}
    objects = {"metric": WIFV(), "structure": ALAM(), "compensation": BiasCompensation()}
    reports = [flap.prune(named, tokenizer, **names, **text), flap.prune(given, tokenizer, **objects, **text)]
    assert torch.equal(logits(given), logits(named))
    assert reports[0].layers == reports[1].layers
    assert reports[1].config["structure"]["_target_"] == "flap.allocation.adaptive.ALAM"
    assert [report.config["method"] for report in reports] == ["flap", "flap"]


@dataclass(frozen=True)
class LaterIsBetter(Metric):
    """The channels in their order, `power` times over."""

    power: float = 1.0

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None and statistics.num_tokens == 8 * 16
        return torch.arange(weight_OI.shape[1]).float() ** self.power


def test_a_users_own_metric_decides_and_is_named(tokenizer: PreTrainedTokenizerFast, text: dict) -> None:
    model, dense = tiny_model("llama-gqa"), tiny_model("llama-gqa")
    report = flap.prune(model, tokenizer, ratio=0.5, metric=LaterIsBetter(power=2.0), structure=ULUM(), **text)
    expected = {"_target_": "tests.test_api.LaterIsBetter", "power": 2.0, "square_attention": False}
    assert (report.config["metric"], report.config["method"]) == (expected, "custom")
    for layer, whole in zip(model.model.layers, dense.model.layers, strict=True):
        assert len(layer.mlp.up_proj.weight) < 56 and len(layer.self_attn.k_proj.weight) == 2 * 8
        for name in ("mlp.up_proj", "mlp.gate_proj", "self_attn.k_proj", "self_attn.q_proj"):
            kept = layer.get_submodule(name).weight
            assert torch.equal(kept, whole.get_submodule(name).weight[-len(kept) :])


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_left_as_they_were(fails: bool, tokenizer: PreTrainedTokenizerFast, text: dict) -> None:
    model = tiny_model("llama-gqa")
    if fails:
        model.model.layers[2].mlp.up_proj.weight.data[:] = torch.nan
    random.seed(5), numpy.random.seed(6), torch.manual_seed(7)
    expected = random.random(), numpy.random.rand(), torch.rand(3)
    random.seed(5), numpy.random.seed(6), torch.manual_seed(7)
    try:
        flap.prune(model, tokenizer, metric="random", overrides=("seed=3",), **text)
        assert not fails
    except ValueError:
        assert fails
    assert (random.random(), numpy.random.rand()) == expected[:2] and torch.equal(torch.rand(3), expected[2])


def test_a_model_that_accelerate_has_spread_is_pruned_alike(
    tokenizer: PreTrainedTokenizerFast, text: dict, model_dir: Path, tmp_path: Path
) -> None:
    half = sum(file.stat().st_size for file in model_dir.glob("*.safetensors")) * 6 // 10
    spread = AutoModelForCausalLM.from_pretrained(
        model_dir, device_map="auto", max_memory={"cpu": half}, offload_folder=tmp_path / "offload"
    )
    whole = tiny_model("llama-gqa")
    reports = [flap.prune(model, tokenizer, ratio=0.4, **text) for model in (spread, whole)]
    assert set(reports[0].device_map.values()) == {"cpu", "disk"} and not reports[1].device_map
    assert reports[0].layers == reports[1].layers
    assert torch.equal(logits(spread), logits(whole))


def test_presets_and_overrides(tokenizer: PreTrainedTokenizerFast, text: dict) -> None:
    model = tiny_model("llama-mha")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    report = flap.prune(model, tokenizer, method="wanda_sp", overrides=("mask_only=true", "seed=3"), **text)
    assert report.config["calibration"]["propagate"] == "pruned" and report.config["seed"] == 3
    assert report.parameters["decoder_after"] < report.parameters["decoder_before"]
    assert {name: p.shape for name, p in model.named_parameters()} == shapes


@pytest.mark.parametrize("name", ["it's a=b, {c} [d].txt", "ünïcode $x.txt", "back\\slash.txt"])
def test_any_path_is_passed_on_as_it_is(
    name: str, tokenizer: PreTrainedTokenizerFast, text: dict, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text_file.read_text())
    report = flap.prune(tiny_model("llama-gqa"), tokenizer, **text | {"dataset": str(tmp_path / name)})
    assert report.config["calibration"]["dataset"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 1.0}, "ratio=1.0: expected a number with 0 <= ratio < 1"),
        ({"ratio": 0.99}, "ratio=0.99: .* at most 0.858"),
        ({"ratio": "abc"}, "ratio: .*abc"),
        ({"metric": "FOO"}, "metric=FOO: expected one of IFV, OBS, WIFN, WIFV"),
        ({"structure": "FOO"}, "structure=FOO: expected one of AL-AM"),
        ({"seq_len": 129}, "calibration.seq_len=129: the model's context ends at 128"),
        ({"sequence_length": 16}, "calibration.sequence_length: unknown key"),
        ({"dataset": "absent.txt"}, "calibration.dataset=absent.txt: no such file"),
        ({"overrides": ("structure=AL-MM", "structure.remove_heads=3")}, "structure.remove_heads=3: .*in steps of 2"),
    ],
    ids=str,
)
def test_bad_input_is_a_value_error_in_one_line_and_changes_nothing(
    options: dict, words: str, tokenizer: PreTrainedTokenizerFast, text: dict
) -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        flap.prune(model, tokenizer, **text | options)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("unsupported", "words"),
    [
        (
            lambda: GPTJForCausalLM(GPTJConfig(n_embd=8, n_layer=1, n_head=1, rotary_dim=4, vocab_size=96)),
            "'gptj' is not supported",
        ),
        (lambda: LlamaForSequenceClassification(ARCHITECTURES["llama-gqa"]), "LlamaForSequenceClassification"),
        (lambda: LlamaModel(ARCHITECTURES["llama-gqa"]), "LlamaModel"),
    ],
    ids=["family", "head", "no-head"],
)
def test_an_unsupported_architecture_is_refused_and_not_changed(
    unsupported: Callable[[], PreTrainedModel], words: str, tokenizer: PreTrainedTokenizerFast, text: dict
) -> None:
    model = unsupported()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        flap.prune(model, tokenizer, **text)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_it_works_inside_another_hydra_application(
    tokenizer: PreTrainedTokenizerFast, text: dict, tmp_path: Path
) -> None:
    (tmp_path / "app.yaml").write_text("lr: 0.1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        flap.prune(tiny_model("llama-gqa"), tokenizer, **text)
        assert compose("app").lr == 0.1  # the application's own configs are where they were


def test_loading_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint here, config\.json is missing"):
        flap.load(tmp_path)


def test_only_what_exists_is_offered() -> None:
    assert set(flap.__all__) == {"prune", "load", "register"}
    assert Path(config_dir(), "config.yaml").is_file()
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = flap.prun
