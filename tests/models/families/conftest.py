from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from flap.models import read_model
from tests.cases import random_model
from tests.helpers.fresh import in_a_fresh_process
from tests.helpers.pruned import Saved, prune, save_pruned
from tests.models.families.contract import COMPENSATIONS, FamilyContract, is_stock

# The families that `make test` tests. They differ most from one another: in how attention and MLP
# are wired, in their normalisation and biases, and in whether they have experts, recurrent layers
# or a vision tower. `make checks` tests every family.
QUICK = {
    "TestFalconH1",
    "TestGPT2",
    "TestGPTNeoX",
    "TestGemma3",
    "TestGemma4",
    "TestGptOss",
    "TestLlama",
    "TestLlama4",
    "TestLlava",
    "TestMixtral",
    "TestOPT",
    "TestOlmo2",
    "TestPhi3",
    "TestQwen3",
    "TestQwen3Moe",
    "TestQwen3Next",
}
FRESH = {"TestLlama"}  # the families whose checkpoints `make test` loads in a new process


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of a model family once for each variant (tiny config) of the family.

    For a family in QUICK, `make test` tests only the last variant, which has most of the options.
    `make test` loads checkpoints in a new process only for the families in FRESH. The mark `long`
    excludes all other cases from `make test`.
    """
    if "variant" in metafunc.fixturenames:
        loads = "found" in metafunc.fixturenames
        quick = metafunc.cls.__name__ in (FRESH if loads else QUICK)
        *_, last = configs = metafunc.cls.configs
        marks = {one: () if quick and one == last else pytest.mark.long for one in configs}
        metafunc.parametrize("variant", [pytest.param(one, marks=marks[one]) for one in configs])


def every_variant(
    request: pytest.FixtureRequest, fixture: str
) -> Iterator[tuple[type[FamilyContract], str, PreTrainedConfig]]:
    """Yield the test class, the name and the config of each variant for which a test is selected.

    A variant is a tiny config of a model family. Only tests that use the given fixture and are in
    the test file of `request` are considered.

    fixture: the name of the fixture.
    """
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    tested = {
        (item.cls, item.callspec.params.get("variant"))
        for item in items
        if item.module is request.module
        and hasattr(item, "callspec")
        and fixture in item.fixturenames
    }
    for family in FamilyContract.__subclasses__():
        for variant, config in family.configs.items():
            if (family, variant) in tested:
                yield family, f"{family.__name__}-{variant}", config


@pytest.fixture(scope="module")
def all_saved(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Saved]:
    """Save a tiny model, pruned by 40 %, of each variant that is tested in a test file."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    for _, name, config in every_variant(request, "saved"):
        random_model(config).save_pretrained(root / "dense" / name)
        model = read_model(root / "dense" / name)
        plan = prune(model, 0.4)
        made[name] = save_pruned(model, tokenizer, root / name, plan)
    return made


@pytest.fixture(scope="module")
def all_uniform(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Saved]:
    """Prune tiny models to equal widths in all layers, and save them.

    There are two models for each variant that the test file tests: one with bias compensation, and
    one without compensation.
    """
    root = tmp_path_factory.mktemp("uniform")
    made = {}
    for family, variant, config in every_variant(request, "found"):
        for how, compensation in COMPENSATIONS.items():
            name = f"{variant}-{how}"
            model = random_model(config)
            plan = prune(
                model, family.uniform_ratio, structure=family.uniform, compensation=compensation
            )
            made[name] = save_pruned(model, tokenizer, root / name, plan)
    return made


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest,
    all_saved: dict[str, Saved],
    all_uniform: dict[str, Saved],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, torch.Tensor]:
    """Return the outputs of all saved checkpoints, computed in one new process without flap.

    The process first loads the stock checkpoints (those that need no code of flap), without
    `trust_remote_code`. Then it loads the checkpoints whose layers differ in width, with
    `trust_remote_code`.
    """
    remote = [all_saved[name].directory for _, name, _ in every_variant(request, "found")]
    stock = [one.directory for one in all_uniform.values() if is_stock(one.directory)]
    return in_a_fresh_process(tmp_path_factory.mktemp("fresh"), stock=stock, remote=remote)
