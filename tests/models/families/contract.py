"""The tests that every model family must pass.

Each family is tested by a subclass of `FamilyContract` with tiny configs.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.load import load
from flap.data import Batch
from flap.method.allocation import ULUM, LayerPlan, Structure, Units, price
from flap.method.calibration import Calibration
from flap.method.compression import (
    BiasCompensation,
    NoCompensation,
    compress_layers,
    mask_layer,
    slice_layer,
)
from flap.modeling.families import family_of
from flap.models import ModelAdapter, Pair, Resident, adapt
from tests.cases import collect, random_model, tokens
from tests.helpers.compressed import changed
from tests.helpers.pruned import Saved, generated, hidden, logits, plan_of, prune, save_pruned
from tests.method.calibration.test_calibrate import assert_same

COMPENSATIONS = {"none": NoCompensation(), "bias": BiasCompensation()}


class FamilyContract:
    """The tests of a family of models. A subclass sets the following attributes for its family."""

    configs: ClassVar[dict[str, PreTrainedConfig]]  # tiny configs of the family, by variant name
    # Config keys that must still have an effect after the model is pruned and reloaded, each with a
    # value that no variant has.
    features: ClassVar[dict[str, Any]] = {}
    neurons: ClassVar[str] = "intermediate_size"  # the config key for the width of an MLP
    # A structure that prunes all layers to the same widths, such that the family's config in
    # transformers can describe the pruned model.
    uniform: ClassVar[Structure] = ULUM()
    uniform_ratio: ClassVar[float] = 0.5  # the ratio at which `uniform` is tested
    # whether the family's config in transformers can describe the biases that compensation adds
    holds_biases: ClassVar[bool] = False
    # Whether a pruned checkpoint of this family can be stock, which means that transformers loads
    # it without code of flap.
    stock: ClassVar[bool] = True
    # tolerance for logits, whose rounding can depend on the memory addresses of tensors
    rounding: ClassVar[float] = 0.0
    # flap prunes no matrix whose name contains one of these strings.
    stays: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def config(self, variant: str) -> PreTrainedConfig:
        return self.configs[variant]

    @pytest.fixture
    def model(self, config: PreTrainedConfig) -> PreTrainedModel:
        return random_model(config)

    @pytest.fixture
    def saved(self, variant: str, all_saved: dict[str, Saved]) -> Saved:
        """Return the checkpoint of the variant, pruned by 40 %."""
        return all_saved[f"{type(self).__name__}-{variant}"]

    def num_neurons(self, config: PreTrainedConfig, layer: int) -> int:
        """Return the number of neurons in one MLP or expert of the layer."""
        return getattr(config, self.neurons)

    def heads(self, config: PreTrainedConfig, layer: int) -> tuple[int, int]:
        """Return the number of KV heads in a layer, and the number of query heads per KV head.

        An attention that flap does not prune counts as one KV head with one query head.
        """
        groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return groups, config.num_attention_heads // groups

    def test_every_role_resolves(self, config: PreTrainedConfig, model: PreTrainedModel) -> None:
        adapter = adapt(model)
        config = config.get_text_config()
        assert len(adapter.layers) == config.num_hidden_layers
        for i in range(len(adapter.layers)):
            attention, mlp = adapter.blocks(i)
            assert (attention.num_units, adapter.queries_per_group(i)) == self.heads(config, i)
            assert mlp.num_units // len(mlp.members) == self.num_neurons(config, i)
            for block in (attention, mlp):
                assert sorted(block.columns_UC.flatten().tolist()) == list(
                    range(block.output.in_features)
                )
                for linear, rows_UR in block.inputs:
                    assert len(rows_UR) == block.num_units
                    assert sorted(rows_UR.flatten().tolist()) == list(range(linear.out_features))

    def whole(self, config: PreTrainedConfig, layer: int) -> tuple[str, ...]:
        """Return those elements of `stays` that occur in the names of the layer's parameters."""
        return self.stays

    def test_no_matrix_of_a_layer_is_overlooked(
        self, config: PreTrainedConfig, model: PreTrainedModel
    ) -> None:
        adapter = adapt(model)
        for i, layer in enumerate(adapter.layers):
            stays = self.whole(config.get_text_config(), i)
            assert all(any(part in name for name, _ in model.named_parameters()) for part in stays)
            matrices = {name: p.numel() for name, p in layer.named_parameters() if p.ndim > 1}
            matrices = {
                name: n for name, n in matrices.items() if not any(part in name for part in stays)
            }
            known = [
                linear.weight.numel()
                for b in adapter.blocks(i)
                for linear in (b.output, *dict(b.inputs))
            ]
            # The biases of stacked experts form a matrix. So `matrices` includes them, and `known`
            # must include them, too.
            stacked = [b for b in adapter.blocks(i) if len(b.members) > 1]
            biases = [linear.bias for b in stacked for linear in (b.output, *dict(b.inputs))]
            known += [bias.numel() for bias in biases if bias is not None]
            assert sum(matrices.values()) == sum(known), matrices

    def test_logits_are_the_models_own(self, model: PreTrainedModel) -> None:
        adapter = adapt(model)
        expected = logits(model)
        assert torch.equal(adapter.logits(hidden(model)), expected)
        torch.testing.assert_close(
            adapter.logits(hidden(model).flatten(0, 1)), expected.flatten(0, 1)
        )

    @pytest.mark.parametrize("compensation", [BiasCompensation(), NoCompensation()])
    def test_masked_equals_sliced(self, model: PreTrainedModel, compensation: Any) -> None:
        known = collect(Resident(model), tokens(), batch_size=3)
        plan = plan_of(model, 0.5)
        sliced, masked = (
            changed(model, plan, compensation, known, how) for how in (slice_layer, mask_layer)
        )
        assert (
            adapt(sliced).num_parameters()
            < adapt(masked).num_parameters()
            == adapt(model).num_parameters()
        )
        torch.testing.assert_close(logits(sliced), logits(masked), atol=1e-4, rtol=0)
        assert not torch.allclose(logits(sliced), logits(model), atol=1e-2)

    @pytest.mark.parametrize("how", [slice_layer, mask_layer])
    def test_ratio_0_changes_nothing(self, model: PreTrainedModel, how: Any) -> None:
        before = copy.deepcopy(model)
        known = collect(Resident(model), tokens(), batch_size=3)
        plan = plan_of(model, 0.0)
        compress_layers(adapt(model), plan, BiasCompensation(), enumerate(known), how)
        assert model.state_dict().keys() == before.state_dict().keys()
        assert torch.equal(logits(model), logits(before))

    def test_prices_are_what_leaves(self, model: PreTrainedModel) -> None:
        adapter = adapt(model)
        budget = price(adapter, 0.0)
        for plan, expected in less_one_unit(plan_of(model, 0.0).layers[1], budget.layers[1]):
            copied = copy.deepcopy(model)
            prunable = adapter.num_parameters()
            total = sum(p.numel() for p in model.parameters())
            slice_layer(adapt(copied), 1, plan, NoCompensation(), None)
            assert total - sum(p.numel() for p in copied.parameters()) == expected
            assert prunable - adapt(copied).num_parameters() == expected
        assert budget.total == adapter.num_parameters()

    def test_layer_by_layer_equals_one_pass(self, model: PreTrainedModel) -> None:
        placed = Resident(model)
        calibration = Calibration(placed, Batch.of(tokens()), 4, [])
        visits = calibration.in_sequence(covariance=False)
        for (_, found), expected in zip(visits, collect(placed, tokens(), 4), strict=True):
            assert_same(found, expected)

    def test_every_attention_kernel_cuts_the_same_units(
        self, config: PreTrainedConfig, model: PreTrainedModel
    ) -> None:
        every = all(
            part._supports_sdpa for part in model.modules() if isinstance(part, PreTrainedModel)
        )
        kernels = ["eager", "sdpa"] if every else ["eager"]
        models = [random_model(config, attn_implementation=kernel) for kernel in kernels]
        plans = [plan_of(one, 0.4) for one in models]
        assert plans == plans[:1] * len(kernels)
        expected = logits(model)
        prune(model, 0.4)
        assert not torch.allclose(logits(model), expected, atol=1e-2)
        last = logits(model)
        # If a model accepts another attention kernel before it is pruned, it also accepts this
        # kernel after it was pruned.
        for dense, kernel in zip(models, kernels, strict=True):
            dense.set_attn_implementation(kernels[0])
            if dense.config._attn_implementation == kernels[0]:
                model.set_attn_implementation(kernel)
                assert {
                    module.config._attn_implementation
                    for module in modules_with_config(adapt(model))
                } == {kernel}
            torch.testing.assert_close(logits(model), last, atol=1e-4, rtol=0)

    def test_bfloat16_runs(self, model: PreTrainedModel) -> None:
        half = copy.deepcopy(model).to(torch.bfloat16)
        known = collect(Resident(model), tokens(), batch_size=3)
        plan = plan_of(model, 0.2)
        for one in (model, half):
            compress_layers(adapt(one), plan, BiasCompensation(), enumerate(known), slice_layer)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        error_NT = (logits(half).float() - logits(model)).norm(dim=-1) / logits(model).norm(dim=-1)
        # Compare the median, because rounding sends a few tokens to another expert.
        assert error_NT.median() < 0.1

    def test_any_device_keeps_the_same_units(self, device: torch.device) -> None:
        config = next(iter(self.configs.values()))
        models = [random_model(config).to(place) for place in (torch.device("cpu"), device)]
        plans = []
        for model in models:
            # `device` may be the device that tests/helpers/second_device.py simulates. Moving a
            # model to this device creates new tensors, so tied weights must be tied again.
            model.tie_weights()
            plans.append(plan_of(model, 0.4))
            known = collect(Resident(model), tokens(), batch_size=3)
            compress_layers(
                adapt(model), plans[0], BiasCompensation(), enumerate(known), slice_layer
            )
        assert plans[0] == plans[1]
        expected, found = (logits_on(model).cpu() for model in models)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)

    def test_a_fresh_process_computes_the_same(
        self, saved: Saved, found: dict[str, torch.Tensor]
    ) -> None:
        close = {"atol": self.rounding, "rtol": 0}
        torch.testing.assert_close(found[f"{saved.directory}"], logits(saved.model), **close)
        torch.testing.assert_close(
            found[f"{saved.directory}.decoder"], hidden(saved.model), **close
        )
        assert torch.equal(found[f"{saved.directory}.generated"], generated(saved.model))

    @pytest.mark.parametrize("compensation", COMPENSATIONS)
    def test_one_width_for_all_layers_needs_no_code_of_ours(
        self,
        variant: str,
        compensation: str,
        all_uniform: dict[str, Saved],
        found: dict[str, torch.Tensor],
    ) -> None:
        saved = all_uniform[f"{type(self).__name__}-{variant}-{compensation}"]
        assert is_stock(saved.directory) == (
            self.stock and (compensation == "none" or self.holds_biases)
        )
        if is_stock(saved.directory):
            close = {"atol": self.rounding, "rtol": 0}
            torch.testing.assert_close(found[f"{saved.directory}"], logits(saved.model), **close)
            torch.testing.assert_close(
                found[f"{saved.directory}.decoder"], hidden(saved.model), **close
            )
            assert torch.equal(found[f"{saved.directory}.generated"], generated(saved.model))

    def test_it_generates_with_any_cache(self, saved: Saved) -> None:
        without = generated(saved.model, use_cache=False)
        assert torch.equal(generated(saved.model, use_cache=True), without)
        assert torch.equal(generated(saved.model, cache_implementation="static"), without)

    def test_a_pruned_model_is_pruned_again(
        self, saved: Saved, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        model = load(saved.directory)
        before = adapt(model).num_parameters()
        again = prune(model, 0.3)
        assert 0.6 < adapt(model).num_parameters() / before < 0.8
        for old, new in zip(saved.plan.layers, again.layers, strict=True):
            assert all(
                max(kept, default=-1) < max(len(before), 1)
                for kept, before in zip(new, old, strict=True)
            )
        reloaded = load(save_pruned(model, tokenizer, tmp_path / "again", again).directory)
        assert torch.equal(logits(reloaded), logits(model))
        assert not torch.equal(logits(reloaded), logits(saved.model))

    def test_what_is_no_width_stays_in_the_config(
        self, config: PreTrainedConfig, saved: Saved
    ) -> None:
        before = keys_of(config)
        after = keys_of(load(saved.directory).config)
        changes = {
            key.rpartition(".")[2] for key, value in before.items() if after.get(key) != value
        }
        assert changes <= {
            "_name_or_path",
            "model_type",
            "architectures",
            "head_dim",
            "per_layer_config",
            "dtype",
        }

    def test_an_earlier_checkpoint_has_the_same_modules(self, saved: Saved) -> None:
        """The names of the pruned modules in config.json are those in flap's table of families.

        In earlier versions of flap, config.json did not name these modules, so flap reads the names
        from the table when it loads such a checkpoint.
        """
        config = saved.model.config
        assert config.flap_modules == family_of(config).modules

    def test_features_still_matter(self, saved: Saved) -> None:
        for key, value in self.features.items():
            if getattr(saved.model.config, key, None) is not None:
                assert not torch.allclose(
                    logits(load(saved.directory, **{key: value})), logits(saved.model), atol=1e-3
                )

    def test_every_feature_is_in_some_variant(self) -> None:
        for key, value in self.features.items():
            there = [getattr(config, key, None) for config in self.configs.values()]
            assert any(one is not None for one in there) and value not in there

    def test_tied_embeddings_stay_tied(self, config: PreTrainedConfig, saved: Saved) -> None:
        for model in (saved.model, load(saved.directory)):
            tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            assert tied == config.tie_word_embeddings


def keys_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config as a flat dict. Keys of a sub-config have names such as `text_config.x`."""
    parts = {
        name: part.to_dict()
        for name in config.sub_configs
        if (part := getattr(config, name)) is not None
    }
    inside = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    return {key: value for key, value in config.to_dict().items() if key not in parts} | inside


def is_stock(directory: Path) -> bool:
    """Return whether a checkpoint is stock, that is, without code and class names of flap."""
    config = json.loads((directory / "config.json").read_text())
    ours = (
        config.keys() & {"auto_map", "per_layer_config"},
        (directory / "modeling_flap.py").exists(),
    )
    assert [bool(one) for one in ours] == [config["model_type"].startswith("flap_")] * 2
    return not ours[1]


def less_one_unit(whole: LayerPlan, units: Pair[Units]) -> Iterator[tuple[LayerPlan, int]]:
    """Yield two plans of a layer, and the number of parameters that each plan removes.

    The first plan removes the second attention unit, and is left out if the layer has only one
    attention unit. The second plan removes the second MLP unit.
    """
    heads, neurons = whole
    if len(heads) > 1:
        yield LayerPlan(heads[:1] + heads[2:], neurons), units.attention.price
    yield LayerPlan(heads, tuple(n for n in neurons if n % units.mlp.count != 1)), units.mlp.price


@torch.no_grad()
def logits_on(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=tokens(seed=7).to(model.device), use_cache=False).logits


def modules_with_config(adapter: ModelAdapter) -> list[Any]:
    return [module for module in adapter.model.modules() if hasattr(module, "config")]
