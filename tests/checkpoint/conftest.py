import pytest
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from flap.checkpoint.save import save
from tests.cases import ARCHITECTURES, tiny_model, tokens
from tests.checkpoint.pruned import Saved, logits, prune


@pytest.fixture(scope="package")
def all_saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Saved]:
    """Every architecture pruned by 40 % and saved."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name in ARCHITECTURES:
        model = tiny_model(name)
        plan = prune(model, 0.4)
        directory = save(model, tokenizer, root / name, plan, {"why": "a test"})
        save_file({"tokens": tokens(seed=7), "logits": logits(model)}, f"{directory}.expected")
        made[name] = Saved(directory, model, plan)
    return made


@pytest.fixture(params=ARCHITECTURES)
def saved(request: pytest.FixtureRequest, all_saved: dict[str, Saved]) -> Saved:
    return all_saved[request.param]
