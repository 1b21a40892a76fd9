"""In Python, flap.prune and flap.load give the same results as the command line."""

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from pandas import DataFrame
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.quantizers import AutoHfQuantizer

import flap
from flap.method.allocation import ALAM, ULUM
from flap.method.calibration import Statistics
from flap.method.compression import BiasCompensation
from flap.method.importance import WIFV, Metric, Random
from flap.models import LoadedSource
from flap.pipeline import run
from flap.results import Report
from flap.storage import digest, to_json
from tests.cases import ARCHITECTURES, tiny_model
from tests.helpers.pruned import logits
from tests.helpers.runs import composed

LORA = LoraConfig(target_modules=["q_proj"])
Prune = Callable[..., Report]


@pytest.fixture
def prune(tokenizer: PreTrainedTokenizerFast, text_file: Path) -> Prune:
    """Return a function that calls `flap.prune` with eight calibration windows of a local text."""
    text = {"dataset": str(text_file), "num_samples": 8, "seq_len": 16}

    def prune_on_text(model: PreTrainedModel, **options: Any) -> Report:
        return flap.prune(model, tokenizer, **text | options)

    return prune_on_text


def test_what_a_notebook_shows(prune: Prune, text_file: Path) -> None:
    assert {"prune", "load", "register"} <= set(dir(flap))
    report = prune(
        tiny_model("llama-gqa"),
        overrides=("eval=[perplexity]", f"eval.perplexity.datasets=[{text_file}]"),
    )
    assert "| ratio removed |" in report._repr_markdown_()
    assert str(report) == report._repr_markdown_()
    assert report.plan is not None and len(report.plan.layers) == 4
    assert [*DataFrame(report.evaluation)] == ["dense", "pruned"]


def test_a_model_that_is_pruned_again_is_told(
    prune: Prune, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama-gqa")
    prune(model)
    assert not caplog.text
    prune(model)
    assert "this process has pruned this model before: the ratio is of what is left" in caplog.text


def test_it_does_what_the_command_line_does_also_with_its_plan(
    prune: Prune, base: list[str], tmp_path: Path
) -> None:
    run(composed(*base, "ratio=0.35"), tmp_path)
    model = tiny_model("llama-gqa")
    scored = tiny_model("llama-gqa")
    report = prune(model, plan=tmp_path)
    assert prune(scored, ratio=0.35).layers == report.layers
    assert torch.equal(logits(scored), logits(model))
    assert torch.equal(logits(flap.load(tmp_path / "checkpoint")), logits(model))
    assert report.config["metric"] is report.config["structure"] is report.config["ratio"] is None


def test_objects_do_what_names_do(prune: Prune) -> None:
    named = tiny_model("llama-gqa")
    given = tiny_model("llama-gqa")
    names = {"metric": "WIFV", "structure": "AL-AM", "compensation": "bias"}
    objects = {"metric": WIFV(), "structure": ALAM(), "compensation": BiasCompensation()}
    reports = [prune(named, **names), prune(given, **objects)]
    assert torch.equal(logits(given), logits(named))
    assert reports[0].layers == reports[1].layers
    assert reports[1].config["structure"]["_target_"] == "flap.method.allocation.adaptive.ALAM"
    assert [report.config["method"] for report in reports] == ["flap", "flap"]


@dataclass(frozen=True)
class LaterIsBetter(Metric):
    """A metric that scores a channel by its index to the power of `power`."""

    power: float = 1.0

    def score(self, weight_OI: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None and statistics.num_tokens == 8 * 16
        return torch.arange(weight_OI.shape[1]).float() ** self.power


def test_a_users_own_metric_decides_and_is_named(prune: Prune) -> None:
    model = tiny_model("llama-gqa")
    dense = tiny_model("llama-gqa")
    report = prune(model, ratio=0.5, metric=LaterIsBetter(power=2.0), structure=ULUM())
    expected = {"_target_": "tests.test_api.LaterIsBetter", "power": 2.0, "square_attention": False}
    assert (report.config["metric"], report.config["method"]) == (expected, "custom")
    for layer, whole in zip(model.model.layers, dense.model.layers, strict=True):
        assert len(layer.mlp.up_proj.weight) < 56 and len(layer.self_attn.k_proj.weight) == 2 * 8
        for name in ("mlp.up_proj", "mlp.gate_proj", "self_attn.k_proj", "self_attn.q_proj"):
            kept = layer.get_submodule(name).weight
            assert torch.equal(kept, whole.get_submodule(name).weight[-len(kept) :])


def later(weight_OI: Tensor, statistics: Statistics) -> Tensor:
    assert statistics.num_tokens == 8 * 16
    return torch.arange(weight_OI.shape[1])


def test_a_function_is_a_metric(prune: Prune) -> None:
    by_function = tiny_model("llama-gqa")
    by_object = tiny_model("llama-gqa")
    report = prune(by_function, ratio=0.5, metric=later)
    assert report.layers == prune(by_object, ratio=0.5, metric=LaterIsBetter()).layers
    assert torch.equal(logits(by_function), logits(by_object))
    assert report.config["metric"] == {
        "_target_": "tests.test_api.later",
        "square_attention": False,
    }
    assert report.config["method"] == "custom"


class Earlier:
    def __call__(self, weight_OI: Tensor, statistics: Statistics) -> Tensor:
        return -torch.arange(weight_OI.shape[1])


def test_an_object_that_can_be_called_is_a_metric_with_the_name_of_its_class(prune: Prune) -> None:
    report = prune(tiny_model("llama-gqa"), metric=Earlier(), structure=ULUM())
    assert report.config["metric"]["_target_"] == "tests.test_api.Earlier"


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (
            lambda weight_OI, statistics: weight_OI[:, 0],
            r"returns scores of shape \(32,\): expected",
        ),
        (
            lambda weight_OI, statistics: [1.0] * 64,
            r"returns list: expected a tensor of shape \(64,\)",
        ),
        (
            lambda weight_OI, statistics: weight_OI[0] / 0,
            "metric: weights or scores of layer 0 attention are not finite",
        ),
    ],
)
def test_what_a_function_returns_is_checked(score: Any, words: str, prune: Prune) -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match=words) as caught:
        prune(model, metric=score)
    assert "finite" in words or "metric: tests.test_api.<lambda> returns" in str(caught.value)
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))


def test_texts_in_memory_are_read_as_the_rows_of_a_file_and_do_not_travel(
    prune: Prune, text_file: Path, tmp_path: Path
) -> None:
    words = text_file.read_text().split()
    texts = [" ".join(words[at : at + 100]) for at in range(0, 2000, 100)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    from_memory = tiny_model("llama-gqa")
    from_file = tiny_model("llama-gqa")

    folder = tmp_path / "checkpoint"
    saving = ("checkpoint.save=true", f"checkpoint.dir={folder}")
    report = prune(from_memory, dataset=texts, overrides=saving)
    prune(from_file, dataset=file)
    assert torch.equal(logits(from_memory), logits(from_file))

    label = f"20 texts in memory (digest {digest(texts)})"
    assert report.config["calibration"]["dataset"] == report.sources["calibration"] == label
    written = [to_json(asdict(report)), (folder / "flap.json").read_text()]
    written.append((folder / "README.md").read_text())
    assert not any(text in page for text in texts for page in written)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "calibration.dataset: the list contains no text"),
        ([" ", "\n"], "calibration.dataset: the list contains no text"),
        (["the cat", 3], r"calibration.dataset\[1\] is int: expected a text, str"),
        (["the cat", "\ud800"], r"calibration.dataset\[1\]: expected whole characters \(surr"),
        (
            ["wikitext2"],
            r"calibration.dataset\[0\]=wikitext2: expected a text, because a list holds",
        ),
        (["/my/words.txt"], r"calibration.dataset\[0\]=/my/words.txt: expected a text, because"),
        (["the cat"], r"calibration.dataset=1 texts in memory \(digest \w+\): 0 windows of 16 tok"),
    ],
)
def test_lists_that_hold_no_texts(texts: list, words: str, prune: Prune) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        prune(tiny_model("llama-gqa"), dataset=texts)


@pytest.mark.parametrize("name", ["sequence_length", "eval"])
def test_a_misspelt_keyword_is_pythons_own_error(name: str, prune: Prune) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        prune(tiny_model("llama-gqa"), **{name: 16})


LONG = "one, two: three " * 400
TOO_LONG: list[dict[str, Any]] = [
    {"ratio": LONG},
    {"target": LONG},
    {"target": {"bytes": LONG}},
    {"plan": LONG},
    {"plan": tuple("x" * 40 for _ in range(9)), "metric": LONG},
    {"metric": "x" * 3000},
    {"structure": ["x"] * 1000},
    {"method": "x" * 3000},
    {"dataset": LONG},
    {"dataset": LONG + ".jsonl"},
    {"dataset": {LONG: 1}},
    {"dataset": {"ptb": LONG}},
    {"dataset": [LONG] * 2, "num_samples": 10_000},
    {"num_samples": [LONG]},
    {"bos": LONG},
    {"propagate": {LONG: LONG}},
    {"overrides": LONG},
    {"overrides": [f"seed='{LONG}'"]},
    {"overrides": [f"model.dtype='{LONG}'"]},
    {"overrides": [f"eval={LONG}"]},
    {"overrides": [f"debug='{LONG}'"]},
    {"overrides": ["checkpoint.save=true", f"checkpoint.dir='{LONG}'"]},
    {"overrides": [f"cache_dir='{LONG}'"]},
    {"overrides": [f"metric.square_attention='{LONG}'"]},
    {"overrides": ["eval=[perplexity]", f"eval.perplexity.datasets=['{LONG}']"]},
]


@pytest.mark.parametrize("options", TOO_LONG, ids=range(len(TOO_LONG)))
def test_no_error_prints_a_whole_long_value(options: dict[str, Any], prune: Prune) -> None:
    with pytest.raises(ValueError) as caught:
        prune(tiny_model("llama-gqa"), **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    assert LONG[:201] not in line and "x" * 201 not in line


def test_no_run_folder(
    prune: Prune, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    perplexity = [
        "eval=perplexity",
        f"eval.perplexity.datasets=[{text_file}]",
        "eval.perplexity.seq_len=16",
        "eval.perplexity.max_tokens=160",
    ]
    for name in ("evaluation.json", "flap.json"):
        (tmp_path / name).write_text("of another run")
    for resume in ("true", "false"):
        model = tiny_model("llama-gqa")
        changed = tiny_model("llama-gqa")
        changed.model.layers[0].mlp.down_proj.weight.data[:, :20] *= 3
        overrides = [*perplexity, f"resume={resume}"]
        numbers = prune(model, overrides=overrides).evaluation["dense"]
        others = prune(changed, overrides=overrides).evaluation["dense"]
        assert numbers.keys() == others.keys()
        assert all(numbers[name] != others[name] for name in numbers)
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
            ("evaluation.json", "flap.json"), "of another run"
        )


@pytest.mark.parametrize("mask_only", ["false", "true"])
def test_the_pruned_model_is_compared_with_the_dense_one(mask_only: str, prune: Prune) -> None:
    model = tiny_model("llama-gqa")
    size = model.num_parameters()
    overrides = [
        "eval=efficiency",
        "eval.efficiency.prefill_len=2",
        "eval.efficiency.decode_len=2",
        "eval.efficiency.repeats=2",
        f"mask_only={mask_only}",
    ]
    evaluation = prune(model, ratio=0.5, overrides=overrides).evaluation
    assert evaluation["dense"]["efficiency/parameters"] == size
    assert evaluation["pruned"]["efficiency/parameters"] == model.num_parameters()
    assert model.num_parameters() != size


def test_a_checkpoint_names_the_given_model(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # This file belongs to the user's current folder, and is not the model card of the given model.
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    for path, name in (("", "LlamaForCausalLM"), (str(tmp_path / "mine"), "mine")):
        model = tiny_model("llama-gqa")
        target = tmp_path / f"pruned {name}"
        model.config._name_or_path = path
        overrides = ("checkpoint.save=true", f"checkpoint.dir='{target}'")
        report = prune(model, overrides=overrides)
        assert torch.equal(logits(flap.load(target)), logits(model))
        label = (target / "flap.json").read_text()
        described = json.loads(label)["provenance"]["config"]["model"]
        expected = {
            "name": name,
            "path": path,
            "dtype": "float32",
            "device": "cpu",
            "placement": "device",
        }
        assert {key: described[key] for key in expected} == expected
        assert described == report.config["model"]
        assert "SmolLM2" not in label
        assert "license: mit" not in (target / "README.md").read_text()


def seed_all() -> None:
    random.seed(5)
    numpy.random.seed(6)
    torch.manual_seed(7)


def draw() -> list[float]:
    return [random.random(), numpy.random.rand(), torch.rand(()).item()]


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_are_left_as_they_were(fails: bool, prune: Prune) -> None:
    model = tiny_model("llama-gqa")
    if fails:
        model.model.layers[2].mlp.up_proj.weight.data[:] = torch.nan
    seed_all()
    expected = draw()
    seed_all()
    with pytest.raises(ValueError) if fails else nullcontext():
        prune(model, metric="random", overrides=("seed=3",))
    assert draw() == expected


def test_a_model_that_accelerate_has_spread_is_pruned_alike(
    prune: Prune, tokenizer: PreTrainedTokenizerFast, model_dir: Path, tmp_path: Path
) -> None:
    half = sum(file.stat().st_size for file in model_dir.glob("*.safetensors")) * 6 // 10
    spread = AutoModelForCausalLM.from_pretrained(
        model_dir, device_map="auto", max_memory={"cpu": half}, offload_folder=tmp_path / "offload"
    )
    whole = tiny_model("llama-gqa")
    assert LoadedSource(spread, tokenizer).placement == "auto"
    assert LoadedSource(whole, tokenizer).placement == "device"
    request = ("eval=efficiency", "eval.efficiency.prefill_len=2")
    with pytest.raises(
        ValueError, match="eval=efficiency: expected none: a model spread over devices is pruned"
    ):
        prune(spread, overrides=request)
    report_of_spread = prune(spread, ratio=0.4)
    report_of_whole = prune(whole, ratio=0.4)
    assert set(report_of_spread.device_map.values()) == {"cpu", "disk"}
    assert not report_of_whole.device_map
    assert report_of_spread.layers == report_of_whole.layers
    assert torch.equal(logits(spread), logits(whole))


@pytest.mark.parametrize(
    "name", ["it's a=b, {c} [d].txt", "ünïcode $x.txt", "\\\\${seed}\\${.txt", 'say "it\'s".txt']
)
def test_any_value_is_passed_on_as_it_is(
    name: str, prune: Prune, text_file: Path, tmp_path: Path
) -> None:
    more = tmp_path / name
    more.write_text(text_file.read_text()[::-1])
    report = prune(tiny_model("llama-gqa"), dataset=more)
    assert report.config["calibration"]["dataset"] == str(more)
    mixture = {str(text_file): 1, str(more): {"weight": 2.5, "chat_template": None}}
    options = {"dataset": mixture, "num_samples": numpy.int64(8), "seq_len": 16}
    report = prune(tiny_model("llama-gqa"), ratio=numpy.float64(0.4), **options)
    calibration = report.config["calibration"]
    assert {name: calibration[name] for name in options} == options
    assert report.ratio["requested"] == 0.4
    assert str(more) in report.sources["calibration"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"overrides": ("recover=lora", "recover.tokens=2432")},
            "recover=lora: expected none: flap.prune changes the",
        ),
        (
            {"plan": "x", "ratio": 0.3},
            "ratio=0.3: expected no ratio here, because plan=x says which units stay",
        ),
        (
            {"plan": "x", "metric": WIFV()},
            "metric=WIFV.*: expected no metric here, because plan=x says",
        ),
        (
            {"plan": "x", "overrides": ("structure=UL-UM",)},
            "overrides: structure=UL-UM: expected no structure here",
        ),
        ({"plan": "x"}, "plan=x: expected the folder of a finished run"),
        ({"metric": "FOO"}, "metric=FOO: expected one of EAN, IFV, MoNE"),
        (
            {"num_samples": "many"},
            "calibration.num_samples: Value 'many' of type 'str' could not be converted",
        ),
        (
            {"dataset": {1, 2}},
            "calibration.dataset: Value 'set' is not a supported primitive type$",
        ),
        ({"target": {"weight": 3}}, "target.weight: unknown key; "),
        ({"target": "bytes=1e5"}, "target=bytes=1e5: expected a mapping, as "),
        ({"metric": WIFV}, "metric=<class .*WIFV'>: expected one of the names"),
        ({"compensation": WIFV()}, r"compensation=WIFV\(.*\): expected one of the names"),
        (
            {"structure": ALAM(), "overrides": ("round_to=8",)},
            "round_to=8: expected None, the value of the structure",
        ),
        (
            {"metric": Random(), "overrides": ("seed=3",)},
            "seed=3: expected 0, the value of the metric object",
        ),
        (
            {"metric": WIFV(), "overrides": ("metric.square_attention=false",)},
            "overrides: metric.square_attention=fal",
        ),
        (
            {"structure": ALAM(), "overrides": ("+structure.x=1",)},
            r"overrides: \+structure.x=1: .* it is an object",
        ),
        (
            {"metric": WIFV(), "overrides": ("metric=IFV",)},
            "overrides: metric=IFV: expected no metric here",
        ),
        (
            {"overrides": ("calibration.dataset=ptb",)},
            "overrides: .* expected no calibration.dataset here, because a k",
        ),
        (
            {"overrides": ("model.dtype=bfloat16",)},
            "overrides: .*: expected no model here, because it is loaded",
        ),
        (
            {"overrides": ("tracking=wandb",)},
            "overrides: tracking=wandb: expected no tracking here",
        ),
        (
            {"overrides": ("use_cache=true",)},
            "overrides: use_cache=true: expected no use_cache here, because the weights",
        ),
        ({"overrides": ("hydra.run.dir=x",)}, "overrides: hydra.run.dir=x: expected no hydra here"),
        (
            {"overrides": ("calibration.temperature=1",)},
            "calibration.temperature=1: expected no calibration.temperature here, because no text",
        ),
        ({"overrides": "eval=none"}, "overrides=eval=none: expected a list of such texts"),
        (
            {"overrides": ("checkpoint.save=true",)},
            "checkpoint.dir=None: expected a folder for the checkpoint",
        ),
    ],
    ids=str,
)
def test_bad_input_is_a_value_error_in_one_line_and_changes_nothing(
    options: dict, words: str, prune: Prune
) -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        prune(model, **options)
    assert "\n" not in str(caught.value)
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
    assert not GlobalHydra.instance().is_initialized()


class Doubled(LlamaForCausalLM):
    """A model whose own class changes the logits.

    flap gives a pruned model another class, which would not change the logits. So flap must refuse
    this model.
    """

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits *= 2
        return output


@cache
def unsupported() -> dict[str, tuple[Any, str]]:
    """Return models that flap.prune refuses at once, each with a pattern of the error message."""
    compiled = tiny_model("llama-gqa")
    compiled.model = torch.compile(compiled.model)
    mixed = tiny_model("llama-gqa")
    mixed.model.layers[1].mlp.bfloat16()
    # As in bitsandbytes, each byte of this weight stores two values of four bits.
    packed = tiny_model("llama-gqa")
    four_bits = torch.nn.Parameter(torch.zeros(56 * 16, 1, dtype=torch.uint8), requires_grad=False)
    packed.model.layers[1].mlp.down_proj.weight = four_bits
    # Some quantisers pack values into tensors of the model's dtype, or into tensors that are no
    # parameters. With such tensors, only the attribute hf_quantizer shows that the model is
    # quantised.
    quantised = tiny_model("llama-gqa")
    quantised.hf_quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True))
    family = GPTJConfig(n_embd=8, n_layer=1, n_head=1, rotary_dim=4, vocab_size=96)
    own = "overrides forward"
    return {
        "name": ("gpt2", "^model=str: expected a model of transformers that is loaded already"),
        "family": (GPTJForCausalLM(family), "'gptj' is not supported"),
        "head": (
            LlamaForSequenceClassification(ARCHITECTURES["llama-gqa"]),
            "LlamaForSequenceClassification",
        ),
        "no head": (LlamaModel(ARCHITECTURES["llama-gqa"]), "LlamaModel"),
        "compiled": (compiled, f"OptimizedModule {own}"),
        "forward": (Doubled(ARCHITECTURES["llama-gqa"]), f"Doubled {own}, .*; expected a class of"),
        "four bits": (
            packed,
            r"^model: its weights are packed \(\['torch.uint8'\]\); expected bfloat16, float16 or",
        ),
        "quantiser": (
            quantised,
            r"^model: its weights are packed \(bitsandbytes\); expected bfloat16, float16 or",
        ),
        "peft": (get_peft_model(tiny_model("llama-gqa"), LORA), "^model: it has adapters, as LoRA"),
        "meta": (tiny_model("llama-gqa").to("meta"), "^model: its weights are on meta; expected"),
        "two types": (mixed, r"^target\.bytes=150000.0: .*several types \(bfloat16, float32\)"),
    }


@pytest.mark.parametrize("case", unsupported().keys())
def test_a_model_that_cannot_be_pruned_is_refused_and_not_changed(case: str, prune: Prune) -> None:
    model, words = unsupported()[case]
    before = {}
    if case not in ("name", "meta"):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        prune(model, target={"bytes": 150e3} if case == "two types" else None)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_no_tokenizer_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^tokenizer=NoneType: expected the tokenizer of the model"
    ):
        flap.prune(tiny_model("llama-gqa"), None)


def test_rounded_rotary_frequencies_are_refused_where_a_checkpoint_is_written(
    prune: Prune, tmp_path: Path
) -> None:
    saving = {"overrides": ("checkpoint.save=true", f"checkpoint.dir={tmp_path / 'kept'}")}
    with pytest.raises(
        ValueError, match=r"^model: its rotary frequencies are rounded.*checkpoint\.save=false"
    ):
        prune(tiny_model("llama-gqa").to(torch.bfloat16), **saving)
    assert not list(tmp_path.iterdir())
    assert prune(tiny_model("llama-gqa").to(torch.bfloat16)).layers


def test_plain_weights_that_a_quantiser_has_read(prune: Prune) -> None:
    model = tiny_model("llama-gqa")
    model.hf_quantizer = AutoHfQuantizer.from_config(
        FineGrainedFP8Config(dequantize=True), pre_quantized=True
    )
    assert prune(model).parameters["total_after"] < tiny_model("llama-gqa").num_parameters()


def test_it_works_inside_another_hydra_application(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "app.yaml").write_text("lr: 0.1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        prune(tiny_model("llama-gqa"))
        # flap.prune must not change the Hydra config of the application.
        assert compose("app").lr == 0.1


def test_defaults_of_torch_change_nothing_and_stay_as_do_the_modes_of_modules(prune: Prune) -> None:
    expected = tiny_model("llama-gqa")
    model = tiny_model("llama-gqa").train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    prune(expected, method="flap_plus")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        torch.set_default_dtype(torch.float16)
        try:
            prune(model, method="flap_plus")
            assert torch.empty(0).dtype == torch.float16
            assert torch.empty(0).device.type == "meta"
            assert torch.is_autocast_enabled("cpu")
        finally:
            torch.set_default_dtype(torch.float32)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(logits(model), logits(expected))
