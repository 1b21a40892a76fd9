"""Makes the checkpoints that engines read in their environment, and notes what transformers makes of them in this one.

Beside a checkpoint NAME lies NAME.safetensors: `prompts_NT`, `generated_NT` (greedy), `logprobs_NT` of both together.
"""

import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

import flap
from flap.allocation import ALAM, ULMM, ULUM, Structure
from flap.checkpoint.modeling_flap import SQUARE
from flap.compression import BiasCompensation, Compensation, NoCompensation
from tests.cases import random_model
from tests.helpers.pruned import prune, save_pruned
from tests.helpers.tokenizers import VOCAB, smollm
from tests.models.families import test_families
from tests.models.families.contract import FamilyContract

assert test_families  # each of its classes is a family under the contract
HEAD = 32  # the smallest head size of vLLM's attention on the CPU
PROMPT, NEW = 40, 24  # tokens; a prompt fills more than one block of a prefix cache
FORMS: dict[str, tuple[Structure, Compensation]] = {
    "layers": (ALAM(multiple_of_heads=2, round_to=8), BiasCompensation()),  # layers differ in width, and split in two
    "stock": (ULUM(), NoCompensation()),
}
LICENCE = Path(flap.__file__).parents[1] / "LICENSE"  # 800 tokens of English that do not change
QUICK = ("eval=none", "ratio=0.2", "calibration=boolq-passages", "calibration.num_samples=8")
PACKAGED = {
    "smollm2-flap": ("method=flap",),
    "smollm2-flap_plus": ("method=flap_plus", "structure.tokens=128", "structure.levels=[0.25]"),
}


def dense_configs() -> Iterator[PreTrainedConfig]:
    """One config of each dense family, with heads that the engines' kernels take."""
    for family in FamilyContract.__subclasses__():
        config = deepcopy(list(family.configs.values())[-1])
        changes = {"vocab_size": VOCAB, "hidden_size": 8 * HEAD, "head_dim": HEAD, "word_embed_proj_dim": 8 * HEAD}
        for key, value in changes.items():
            if hasattr(config, key):
                setattr(config, key, value)
        if not hasattr(config, "num_experts_per_tok"):
            yield config


@torch.no_grad()
def tiny(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose predictions are neither certain nor even."""
    model = random_model(config)
    for parameter in model.parameters():
        parameter.mul_(0.4 if parameter.ndim > 1 else 1.0)
    return model


def make_tiny(config: PreTrainedConfig, form: str, target: Path, emptied: str = "") -> None:
    """Write a family in a form. emptied: the output projection of a block of which nothing but a bias is left."""
    model, (structure, compensation) = tiny(config), FORMS[form]
    if form == "stock" and type(model).__name__.removesuffix("ForCausalLM") in SQUARE:
        structure = ULMM(remove_heads=0)
    plan = prune(model, 0.4, structure=structure, compensation=compensation)
    if emptied:
        model.get_submodule(emptied).weight.data.zero_()
    save_pruned(model, smollm(), target, plan)
    prompts_NT = torch.randint(3, VOCAB, (4, PROMPT), generator=torch.Generator().manual_seed(5))
    note_expected(model, prompts_NT, target)


def make_packaged(name: str, target: Path) -> None:
    """Prune the packaged model with a real command."""
    arguments = (*QUICK, *PACKAGED[name], f"checkpoint.dir={target}", f"hydra.run.dir={target}-run")
    subprocess.run([sys.executable, "-m", "flap", *arguments], check=True)
    tokens = AutoTokenizer.from_pretrained(target)(LICENCE.read_text(), return_tensors="pt")["input_ids"]
    note_expected(flap.load(target, dtype="float32"), tokens[0, : 20 * PROMPT].reshape(20, PROMPT), target)


@torch.no_grad()
def note_expected(model: PreTrainedModel, prompts_NT: Tensor, path: Path) -> None:
    """Write what transformers makes of the prompts."""
    model.generation_config.eos_token_id = None  # the engines go on, too, where the end is the most probable token
    every_NT = model.generate(prompts_NT, max_new_tokens=NEW, do_sample=False)
    logits_NTV = model(input_ids=every_NT).logits[:, :-1]
    logprobs_NT = logits_NTV.log_softmax(-1).gather(-1, every_NT[:, 1:, None])[..., 0]
    found = {"prompts_NT": prompts_NT, "generated_NT": every_NT[:, PROMPT:], "logprobs_NT": logprobs_NT}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{path}.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for one in dense_configs():
        for form in FORMS:
            make_tiny(one, form, folder / f"{one.model_type}-{form}")
    llama = next(dense_configs())
    make_tiny(llama, "layers", folder / "llama-no-attention", emptied="model.layers.1.self_attn.o_proj")
    make_tiny(llama, "layers", folder / "llama-no-mlp", emptied="model.layers.1.mlp.down_proj")
    for name in PACKAGED:
        make_packaged(name, folder / name)
