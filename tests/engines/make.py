"""Make the checkpoints for the tests of inference engines, and store the outputs of transformers.

The engines need a separate environment, but this module runs in the main environment.

For each checkpoint NAME, the file NAME.safetensors contains `prompts_NT`, `generated_NT` (the
greedy continuations), and `logprobs_NT` (the log-probabilities of all tokens of the prompts and
continuations, except the first token of each prompt). The folder experts/ contains dense (unpruned)
mixtures of experts. The file scores.safetensors of a mixture contains, for each layer, the experts'
scores by `metric=REAP`, and the tokens from which the scores were computed.
"""

import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

import flap
from flap.checkpoint.convert import become_checkpointable
from flap.method.allocation import ALAM, ULMM, ULUM, PruningPlan
from flap.method.compression import BiasCompensation, NoCompensation, compress_layers, slice_layer
from flap.method.importance import REAP, score_layers
from flap.models import Resident, adapt
from flap.pipeline import run
from tests.cases import collect, random_model
from tests.engines.cases import (
    ALL_HEADS,
    BY_LAYER,
    CONVERTED,
    MIXTURES,
    NO_BIASES,
    QUANTISED,
    REFUSED_FAMILIES,
)
from tests.helpers.engine_cases import EVERY_FAMILY, FAMILIES, family_config
from tests.helpers.pruned import calibrated, decided, prune, save_pruned
from tests.helpers.runs import composed
from tests.helpers.tokenizers import VOCAB, smollm

HEAD = 32  # the smallest head size that vLLM's attention supports on the CPU
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 8 * HEAD,
    "head_dim": HEAD,
    "word_embed_proj_dim": 8 * HEAD,
}
# Sizes for families whose configs need more keys than SIZES has. Gemma 4 has heads of two sizes,
# and DeepSeek-V3 has latent attention.
OWN_SIZES = {
    "gemma4_text": {
        "allow_global_per_layer_attribute_access": True,
        "per_layer_config": {2: {"head_dim": 2 * HEAD}},
    },
    "deepseek_v3": {
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "head_dim": 64,
        "qk_head_dim": 192,
    },
}
# The numbers of tokens in a prompt and in its continuation. A prompt must be longer than a block of
# vLLM's prefix cache.
PROMPT, NEW = 40, 24
LICENCE = Path(flap.__file__).parents[1] / "LICENSE"  # an English text that never changes
EXAMPLES = Path(flap.__file__).parents[1] / "examples"
QUICK = (
    "eval=none",
    "ratio=0.2",
    "calibration=boolq-passages",
    "calibration.num_samples=8",
    "calibration.seq_len=128",
)
PACKAGED = {
    "smollm2-flap": ("method=flap",),
    "smollm2-flap_plus": ("method=flap_plus", "calibration=boolq-self", "structure.tokens=128"),
    "smollm2-stock": ("structure=UL-UM", "compensation=none"),
    "smollm2-trimmed": ("vocabulary=trim", "vocabulary.size=16384"),
}


def with_heads_for_kernels(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of the config with a head size that the kernels of the engines support."""
    config, own = deepcopy(config), OWN_SIZES.get(config.model_type, {})
    for key, value in (own | SIZES | own).items():
        if key in own or (
            hasattr(config, key) and not isinstance(getattr(type(config), key, None), property)
        ):
            setattr(config, key, value)
    return config


@torch.no_grad()
def tiny(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a random model with predictions that are neither certain nor uniform."""
    model = random_model(with_heads_for_kernels(config))
    for parameter in model.parameters():
        parameter.mul_(0.4 if parameter.ndim > 1 else 1.0)
    return model


def make_family(model_type: str, folder: Path) -> None:
    """Write two pruned checkpoints of a family.

    In the first checkpoint, layers differ in width, and biases compensate for the removed heads and
    neurons. In the second checkpoint, all layers have the same width, and there is no compensation.
    """
    model = tiny(family_config(model_type))
    family = FAMILIES[model_type]
    write(model, prune(model, 0.4), folder / f"{model_type}-layers")
    model = tiny(family_config(model_type))
    plan = prune(
        model, family.uniform_ratio, structure=family.uniform, compensation=NoCompensation()
    )
    write(model, plan, folder / f"{model_type}-stock")


def make_by_layer(model_type: str, folder: Path) -> None:
    """Write a checkpoint of a family, with layers that differ in width."""
    model = tiny(family_config(model_type))
    write(model, prune(model, 0.4), folder / f"{model_type}-layers")


def make_without_biases(model_type: str, folder: Path) -> None:
    """Write a checkpoint with layers that differ in width, and without compensating biases."""
    model = tiny(family_config(model_type))
    write(
        model, prune(model, 0.4, compensation=NoCompensation()), folder / f"{model_type}-no-biases"
    )


def make_fewer_experts(model_type: str, target: Path) -> None:
    """Write a checkpoint of a mixture of experts whose layers differ in the number of experts."""
    placed = Resident(tiny(family_config(model_type)))
    placed.adapter = adapt(placed.model, whole_experts=True)
    known = calibrated(placed)
    plan = decided(known, 0.4, ALAM(experts=True))
    compress_layers(
        placed.adapter,
        plan,
        NoCompensation(),
        known.visit("compress", False, changing=True),
        slice_layer,
    )
    become_checkpointable(placed)
    write(placed.model, plan, target)


def make_llama(folder: Path) -> None:
    """Write a checkpoint of LLaMA that two processes of vLLM can divide (tensor parallelism).

    Each layer has an even number of KV heads and an even number of neurons.
    """
    model = tiny(family_config("llama"))
    write(
        model,
        prune(model, 0.4, structure=ALAM(multiple_of_heads=2, round_to=8)),
        folder / "llama-split",
    )


def write(model: PreTrainedModel, plan: PruningPlan, target: Path) -> None:
    """Write a checkpoint, and the outputs that the engines must compute for it."""
    save_pruned(model, smollm(), target, plan)
    note_expected(
        model,
        torch.randint(3, VOCAB, (4, PROMPT), generator=torch.Generator().manual_seed(5)),
        target,
    )


def make_scores(model_type: str, folder: Path) -> None:
    """Write a dense mixture of experts, and the scores of its experts by `metric=REAP`."""
    config = family_config(model_type)
    config.n_group = config.topk_group = 1
    model = tiny(config)
    placed = Resident(model)
    tokens_NT = torch.randint(3, VOCAB, (8, PROMPT), generator=torch.Generator().manual_seed(6))
    placed.adapter = adapt(model, whole_experts=True)
    known = enumerate(collect(placed, tokens_NT, batch_size=4))
    found = {"tokens_NT": tokens_NT}
    for i, scores in enumerate(score_layers(REAP(), placed.adapter, known).layers):
        if placed.adapter.mlp(i).whole:
            parent = placed.adapter.parent(i, placed.adapter.family.experts)
            found[next(name for name, module in model.named_modules() if module is parent)] = (
                scores.mlp
            )
    model.save_pretrained(folder / model_type)
    save_file(found, folder / model_type / "scores.safetensors")


def make_quantised(folder: Path) -> None:
    """Write two checkpoints of LLaMA, and let llm-compressor quantise the checkpoints of QUANTISED.

    llm-compressor runs in the environment of the engines, whose Python is the second argument of
    this script. The widths of the two checkpoints are multiples of llm-compressor's group size.
    """
    config = deepcopy(family_config("llama"))
    config.intermediate_size = 512
    for form, structure, compensation in (
        ("layers", ALAM, BiasCompensation()),
        ("stock", ULUM, NoCompensation()),
    ):
        model = tiny(config)
        target = folder / f"round-{form}"
        structure = structure(multiple_of_heads=2, round_to=128)
        write(model, prune(model, 0.4, structure=structure, compensation=compensation), target)

    for name, scheme in QUANTISED:
        command = [
            sys.argv[2],
            EXAMPLES / "quantise.py",
            folder / name,
            folder / "quantised" / f"{name}-{scheme}",
            scheme,
        ]
        subprocess.run(command, check=True)


def make_converted(folder: Path) -> None:
    """Write stock checkpoints (checkpoints that need no code of flap) for llama.cpp's converter.

    The checkpoints have SmolLM2's tokenizer, because the converter accepts only tokenizers that it
    knows. They have no biases and no sliding windows, because llama.cpp supports these only for
    some families.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "smollm2-stock")
    for model_type in CONVERTED:
        config = family_config(model_type)
        target = folder / "converted" / model_type
        plain = {"attention_bias": False, "mlp_bias": False, "sliding_window": None}
        plain["layer_types"] = ["full_attention"] * config.num_hidden_layers
        ids = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
        }
        for key, value in {**plain, **ids, "vocab_size": len(tokenizer)}.items():
            if hasattr(config, key):
                setattr(config, key, value)
        model = random_model(config)
        structure = ULMM(remove_heads=0) if model_type in ALL_HEADS else ULUM()
        ratio = EVERY_FAMILY[model_type].uniform_ratio
        save_pruned(
            model,
            tokenizer,
            target,
            prune(model, ratio, structure=structure, compensation=NoCompensation()),
        )
        note_expected(model, torch.randint(3, len(tokenizer), (1, PROMPT)), target)


def make_packaged(name: str, target: Path) -> None:
    """Prune SmolLM2 with the options PACKAGED[name], and write the checkpoint and its outputs.

    The dense SmolLM2 comes from an installed package.
    """
    run(composed(*QUICK, *PACKAGED[name], f"checkpoint.dir={target}"), Path(f"{target}-run"))
    tokens = AutoTokenizer.from_pretrained(target)(LICENCE.read_text(), return_tensors="pt")[
        "input_ids"
    ]
    note_expected(
        flap.load(target, dtype="float32"), tokens[0, : 8 * PROMPT].reshape(8, PROMPT), target
    )


@torch.no_grad()
def note_expected(model: PreTrainedModel, prompts_NT: Tensor, path: Path) -> None:
    """Write the prompts, and the outputs of transformers for them, to PATH.safetensors."""
    # Generation must not stop at an end token, because the engines do not stop at such a token
    # either.
    model.generation_config.eos_token_id = None
    every_NT = model.generate(prompts_NT, max_new_tokens=NEW, do_sample=False)
    logits_NTV = model(input_ids=every_NT).logits[:, :-1]
    logprobs_NT = logits_NTV.log_softmax(-1).gather(-1, every_NT[:, 1:, None])[..., 0]
    found = {
        "prompts_NT": prompts_NT,
        "generated_NT": every_NT[:, PROMPT:],
        "logprobs_NT": logprobs_NT,
    }
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{path}.safetensors")


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    for model_type in FAMILIES:
        make_family(model_type, folder)
    for model_type in (*BY_LAYER, *REFUSED_FAMILIES):
        make_by_layer(model_type, folder)
    for model_type in NO_BIASES:
        make_without_biases(model_type, folder)
    make_fewer_experts("mixtral", folder / "mixtral-experts")
    make_llama(folder)
    for model_type in MIXTURES:
        make_scores(model_type, folder / "experts")
    for name in PACKAGED:
        make_packaged(name, folder / name)
    make_converted(folder)
    make_quantised(folder)
