"""In a pruned mixture of experts, each expert has its own output bias and its own statistics.

The statistics of an expert, such as the means of its activations, are computed over the tokens that
the router sends to this expert. The tests check this with every kernel that transformers has for
experts. All experts of a layer have the same width.
"""

import copy
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.convert import become_checkpointable
from flap.checkpoint.load import load
from flap.data import split_windows
from flap.evaluation.request_cost import macs
from flap.method.allocation import LayerPlan
from flap.method.calibration import LayerStatistics
from flap.method.compression import (
    BiasCompensation,
    LinearCompensation,
    NoCompensation,
    mask_layer,
    slice_layer,
)
from flap.method.compression.compensation import Removal
from flap.method.compression.fitting import fit_layer
from flap.method.importance import OBS, score_layer
from flap.models import Resident, adapt
from flap.models.model_files import read_model
from flap.pipeline import run
from tests.cases import MIXTURES, VOCAB, collect, tiny_model, tokens
from tests.helpers.compressed import changed, covariances, in_parts, whole
from tests.helpers.pruned import logits, plan_of, prune, save_pruned
from tests.helpers.runs import composed, tiny

EXPERTS = 6
NEURONS = 24
KERNELS = ("eager", "batched_mm", "grouped_mm")


@pytest.fixture(params=MIXTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def experts(model: PreTrainedModel, layer: int) -> nn.Module:
    return model.model.layers[layer].mlp.experts


def observed(model: PreTrainedModel) -> list[LayerStatistics]:
    return collect(Resident(model), tokens(), batch_size=4)


@torch.no_grad()
def flowing_in(model: PreTrainedModel, layer: int, tokens_NT: Tensor) -> list[Tensor]:
    """Return the inputs of each expert's down projection, recorded in the eager kernel."""
    model = copy.deepcopy(model)
    model.set_experts_implementation("eager")
    down_proj = experts(model, layer).down_proj
    which = {down_proj[e].data_ptr(): e for e in range(EXPERTS)}
    seen: dict[int, list[Tensor]] = defaultdict(lambda: [torch.zeros(0, down_proj.shape[2])])
    linear = nn.functional.linear

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.data_ptr() in which:
            seen[which[weight.data_ptr()]].append(x)
        return linear(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", spy)
        model(input_ids=tokens_NT)
    return [torch.cat(seen[e]) for e in range(EXPERTS)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_statistics_are_those_of_the_tokens_routed_to_each_expert(
    model: PreTrainedModel, kernel: str
) -> None:
    model.set_experts_implementation(kernel)
    known = observed(model)[1].blocks.mlp
    activations = flowing_in(model, 1, tokens())
    assert sum(map(len, activations)) == 2 * tokens().numel()
    for one, activation_TI in zip(known, activations, strict=True):
        wide_TI = activation_TI.double()
        assert one.num_tokens == len(wide_TI)
        for found, expected in (
            (one.mean_I, wide_TI.mean(0)),
            (one.var_I, wide_TI.var(0)),
            (one.msq_I, wide_TI.square().mean(0)),
        ):
            torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=1e-6)


def test_the_bias_keeps_each_experts_mean_output(model: PreTrainedModel) -> None:
    means_EI = torch.stack(
        [activation_TI.mean(0) for activation_TI in flowing_in(model, 0, tokens())]
    )
    down_EHI = experts(model, 0).down_proj.clone()
    kept = torch.tensor(prune(model, 0.4).layers[0].mlp).reshape(EXPERTS, -1) % NEURONS
    for e in range(EXPERTS):
        found = (
            experts(model, 0).down_proj[e] @ means_EI[e, kept[e]]
            + experts(model, 0).down_proj_bias[e]
        )
        torch.testing.assert_close(found, down_EHI[e] @ means_EI[e], rtol=1e-4, atol=1e-5)


def test_experts_that_see_no_token_or_one(model: PreTrainedModel) -> None:
    few = tokens(1, 3)
    known = collect(Resident(model), few, batch_size=1)
    counts_E = torch.tensor([one.num_tokens for one in known[0].blocks.mlp])
    assert counts_E.sum() == 2 * few.numel() and {0, 1} <= set(counts_E.tolist())
    for name in ("mean_I", "var_I", "msq_I"):
        values_EI = torch.stack([getattr(one, name) for one in known[0].blocks.mlp])
        assert torch.isfinite(values_EI).all() and (values_EI[counts_E == 0] == 0).all()
    plan = plan_of(model, 0.5)
    sliced, masked = (
        changed(model, plan, BiasCompensation(), known, how) for how in (slice_layer, mask_layer)
    )
    assert torch.isfinite(logits(sliced)).all()
    torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=0)
    assert (experts(sliced, 0).down_proj_bias[counts_E == 0] == 0).all()


@pytest.mark.parametrize("kept", [16, 17])
@pytest.mark.parametrize("compensation", [BiasCompensation(), NoCompensation()])
def test_every_kernel_computes_the_same(
    kept: int,
    compensation: object,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """All kernels compute the same logits.

    The grouped kernel cannot read rows of 17 float32 values, so flap uses `eager` for them.
    """
    adapter = adapt(model)
    known = observed(model)
    plan = plan_of(model, 0.0)
    for i in range(2):
        heads, neurons = plan.layers[i]
        layer = LayerPlan(heads, tuple(n for n in neurons if n % NEURONS < kept))
        slice_layer(adapter, i, layer, compensation, known[i])
    for one in (model, load_saved(model, tokenizer, tmp_path)):
        expected = logits(one)
        for kernel in KERNELS:
            one.set_experts_implementation(kernel)
            torch.testing.assert_close(logits(one), expected, atol=1e-5, rtol=0)
        used = experts(one, 0).config._experts_implementation
        assert used == ("grouped_mm" if kept == 16 else "eager")


def load_saved(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path
) -> PreTrainedModel:
    become_checkpointable(Resident(model))
    return load(save_pruned(model, tokenizer, path / "saved", plan_of(model, 0.0)).directory)


@pytest.mark.parametrize("kernel", KERNELS)
def test_macs_are_those_of_the_chosen_experts(model: PreTrainedModel, kernel: str) -> None:
    model.set_experts_implementation(kernel)
    adapter = adapt(model)
    config = model.config
    length = 24
    blocks = [adapter.blocks(i) for i in range(3)]
    linear = sum(attention.num_parameters for attention, _ in blocks)
    linear += sum(
        mlp.num_parameters * 2 // EXPERTS if len(mlp.members) > 1 else mlp.num_parameters
        for _, mlp in blocks
    )
    mixtures = [mlp for _, mlp in blocks if len(mlp.members) > 1]
    linear += len(mixtures) * EXPERTS * config.hidden_size  # parameters of the routers
    expected = length * (linear + VOCAB * config.hidden_size + 2 * 3 * 8 * config.head_dim * length)
    rotary = config.head_dim // 2 * length
    assert macs(model, torch.ones(1, length, dtype=torch.long)) in (expected, expected + rotary)
    assert model.config._experts_implementation == kernel


def test_every_expert_is_fitted_on_the_tokens_routed_to_it(model: PreTrainedModel) -> None:
    """Each expert has covariances of the tokens routed to it, and a linear map fitted to them."""
    windows_NT = tokens(windows=40)
    known = covariances(model, windows_NT, 8)[1]
    block = adapt(model).mlp(1)
    fitting, held_out = (flowing_in(model, 1, part_NT) for part_NT in split_windows(windows_NT))
    kept = tuple(n for n in range(EXPERTS * NEURONS) if n % NEURONS % 3)
    blocks = adapt(model).blocks(1)
    [fits] = fit_layer(
        blocks,
        [LayerPlan(tuple(range(blocks.attention.num_units)), kept)],
        LinearCompensation(),
        known,
    )
    assert fits.attention is None and fits.mlp is not None and fits.mlp.bias_O is not None
    assert list(fits.mlp.reports) == [f"layer 1 MLP expert {e}" for e in range(EXPERTS)]
    stays_I = torch.arange(NEURONS) % 3 > 0
    removal = Removal(stays_I.nonzero().flatten(), (~stays_I).nonzero().flatten())
    for e, one in enumerate(known.blocks.mlp):
        alone = in_parts(fitting[e], held_out[e])
        assert one.parts is not None and alone.parts is not None
        for mine, theirs in zip(one.parts, alone.parts, strict=True):
            assert mine.num_tokens == theirs.num_tokens
            torch.testing.assert_close(whole(mine), whole(theirs), rtol=1e-3, atol=1e-4)
        down_HI = block.output.experts.down_proj[e]
        [fit] = LinearCompensation().fits(down_HI, alone, [removal])
        torch.testing.assert_close(
            fits.mlp.weight_OK.chunk(EXPERTS, dim=1)[e], fit.weight_OK, rtol=1e-2, atol=1e-3
        )
        torch.testing.assert_close(
            fits.mlp.bias_O.chunk(EXPERTS)[e], fit.bias_O, rtol=1e-2, atol=1e-3
        )


def test_an_expert_is_scored_by_its_own_covariance(model: PreTrainedModel) -> None:
    known = covariances(model, tokens(windows=40), 8)[1]
    block = adapt(model).mlp(1)
    score_I = score_layer(OBS(), adapt(model).blocks(1), known).mlp
    for e, one in enumerate(known.blocks.mlp):
        alone_I = OBS().score(block.output.experts.down_proj[e], one)
        torch.testing.assert_close(score_I.chunk(EXPERTS)[e], alone_I, rtol=1e-4, atol=1e-6)


def test_one_expert(
    tokenizer: PreTrainedTokenizerFast,
    text_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A layer with only one expert keeps this expert's output bias after saving and loading."""
    model = tiny_model("qwen3_moe", num_experts=1, num_experts_per_tok=1, moe_intermediate_size=23)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model.set_experts_implementation("eager")  # only the eager kernel supports this width
    torch.testing.assert_close(logits(read_model(tmp_path / "model")), logits(model))
    options = ["method=flap_plus", "calibration.num_samples=20", "ratio=0.4"]
    report = run(composed(*tiny(tmp_path / "model", text_file), *options), tmp_path / "run")
    assert report.ratio["realised_decoder"] == pytest.approx(0.4, abs=0.03)
    # The run has already compared the logits of the saved checkpoint with those of the model.
    reloaded = load(tmp_path / "run" / "checkpoint")
    assert experts(reloaded, 0).down_proj_bias.shape == (1, 32)
    assert torch.isfinite(logits(reloaded)).all()
