import pytest
from transformers import PreTrainedTokenizerFast

from tests.helpers.engine_cases import CELLS, family_checkpoint
from tests.helpers.gguf_cases import Exported


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return tiny pruned checkpoints. The keys are family and form, such as ("llama", "by layer").

    In the form "by layer", layers differ in width. In the form "uniform", all layers have the same
    width.
    """
    root = tmp_path_factory.mktemp("engines")
    made: dict[tuple[str, str], Exported] = {}
    for model_type, form in CELLS:
        folder = root / f"{model_type} {form}"
        made[model_type, form] = family_checkpoint(model_type, form, tokenizer, folder)
    return made
