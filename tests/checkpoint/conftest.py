from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flap.checkpoint.save import make_label, save_checkpoint
from flap.models import PlacedModel, Resident
from tests.cases import ARCHITECTURES, tiny_model
from tests.helpers.pruned import Saved, prune, save_pruned


@pytest.fixture(scope="package")
def all_saved(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Saved]:
    """Return, for each architecture, the checkpoint of a tiny model that is pruned by 40 %."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name in ARCHITECTURES:
        model = tiny_model(name)
        plan = prune(model, 0.4)
        made[name] = save_pruned(model, tokenizer, root / name, plan, why="a test")
    return made


@pytest.fixture(params=ARCHITECTURES)
def saved(request: pytest.FixtureRequest, all_saved: dict[str, Saved]) -> Saved:
    return all_saved[request.param]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model = tiny_model("llama-gqa", seed=3)
    prune(model, 0.2)
    return model


@pytest.fixture
def old(all_saved: dict[str, Saved], tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """Write a pruned checkpoint whose parent folder contains nothing else, and return its path."""
    saved = all_saved["llama-gqa"]
    folder = tmp_path / "parent" / "checkpoint"
    return save_pruned(saved.model, tokenizer, folder, saved.plan).directory


@pytest.fixture
def save_over(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    all_saved: dict[str, Saved],
    old: Path,
) -> Callable[..., PlacedModel]:
    """Return a function that saves another model over the checkpoint in `old`."""
    label = make_label(all_saved["llama-gqa"].plan.to_dict(), {"new": True})

    def save_it(overwrite: bool = True) -> PlacedModel:
        return save_checkpoint(Resident(model), tokenizer, old, label, overwrite)

    return save_it
