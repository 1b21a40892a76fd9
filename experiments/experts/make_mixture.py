"""Make a trained mixture of experts: `python experiments/experts/make_mixture.py TARGET`.

The script makes the mixture from SmolLM2-135M-Instruct in three steps, and writes a stock Mixtral
checkpoint to TARGET:

1. Each MLP is cut into 16 experts. The 96 neurons of an expert are active for the same tokens
   (MoEfication, arXiv 2110.01786; LLaMA-MoE, arXiv 2406.16554).
2. A router is fitted for each layer. The router sends each token to 8 experts.
3. `distil` trains all layers, so that the mixture predicts what SmolLM2 ("dense") predicts.

The script measures the perplexity of SmolLM2, and of the mixture before and after its training, on
boolq-passages, on sciq-passages and on the text of `--text FILE`.

Legend: N: windows, T: tokens (of all windows or of one window), D: hidden size, I: neurons of an
    MLP, E: experts, K: experts that the router chooses for a token.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, one_hot
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from flap.config import ModelConfig
from flap.data import Batch, evaluation_windows, read_text
from flap.data.read_windows import Wanted, read_windows
from flap.evaluation.perplexity import perplexity, window_losses
from flap.method.recovery import Recovery
from flap.method.recovery.distillation import distil
from flap.method.recovery.teacher import Teacher
from flap.models import CheckpointSource, find_model
from flap.storage import cache_root

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXTS = ["boolq-passages", "hellaswag-passages"]  # half of the windows come from each text
EXPERTS = 16
CHOSEN = 8
SEQ_LEN = 256
CLUSTER_TOKENS = 16_384
ROUTER_TOKENS = 65_536
HELD_OUT_TOKENS = 8_192
# For each token, this share of an MLP's neurons counts as active: the neurons that add most to the
# output of the MLP. The amount that a neuron adds is measured by |activation| · ‖column of the
# neuron in the down projection‖.
ACTIVE = 0.25
# The ridge parameter of the router's fit, relative to the mean eigenvalue of XᵀX. The matrix X has
# the router's inputs, with a row for each token.
RIDGE = 1e-2
# Factors by which the weights of the fitted router are multiplied. For each layer, the script tries
# all factors, and uses the factor with the smallest error (`layer_error`).
SHARPNESS = (0.05, 0.2, 0.5, 1.0)


class Cut(NamedTuple):
    """The replacement of one layer's MLP: its neurons, divided into experts, and a router."""

    order_I: Tensor  # the indices of the MLP's neurons, sorted by expert
    error: float  # relative squared error of the replacement on held-out tokens (`layer_error`)
    router_ED: Tensor
    # Factors by which the experts' outputs are multiplied. The output of the MLP is the sum of the
    # outputs of all experts. Without these factors, the mixture would compute a weighted mean
    # instead, because the router's weights for a token add up to 1.
    scale_E: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--text", type=Path, help="a text file to evaluate on")
    parser.add_argument("--tokens", type=int, default=49_152, help="tokens to recover with")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of the recovery")
    options = parser.parse_args()
    dense = source_of(SMOLLM2)
    cut = options.target / "cut"
    # If an earlier run of this script was killed during the training, it has left the untrained
    # mixture in the folder `cut`, so the mixture need not be made again.
    if not (cut / "config.json").exists():
        write(assembled(dense.open().model, cuts(dense)), dense, cut)
    report = {
        "dense": measured(dense, options.text),
        "cut": measured(source_of(str(cut)), options.text),
    }
    print(json.dumps(report), flush=True)
    report["recovery"] = recovered(dense, cut, options)
    report["recovered"] = measured(source_of(str(options.target)), options.text)
    (options.target / "mixture.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report), flush=True)


def source_of(path: str) -> CheckpointSource:
    """Return a source that opens the model `path` (a folder or a hub id) when it is needed."""
    return find_model(
        ModelConfig(path, path, dtype="bfloat16"), cache_root(None), trust_remote_code=False
    )


def write(model: PreTrainedModel, dense: CheckpointSource, target: Path) -> None:
    model.save_pretrained(target)
    dense.tokenizer.save_pretrained(target)


# --- Divide the MLPs into experts ---


@torch.no_grad()
def cuts(dense: CheckpointSource) -> list[Cut]:
    """For each layer, fit experts and a router that replace the MLP, on the texts TEXTS."""
    wanted = Wanted((ROUTER_TOKENS + HELD_OUT_TOKENS) // SEQ_LEN, SEQ_LEN, 0, "auto")
    windows = read_windows("calibration", TEXTS, dense.tokenizer, wanted, dense.max_length)
    tokens_NT = windows.batch.tokens_NT
    parts = list[Cut]()
    for layer, (mlp, input_TD) in enumerate(mlp_inputs(dense.open().model, tokens_NT)):
        began = time.monotonic()
        parts.append(cut_layer(mlp, input_TD, torch.Generator().manual_seed(layer)))
        print(f"layer {layer}: {parts[-1].error}, {time.monotonic() - began:.0f} s", flush=True)
    return parts


def mlp_inputs(model: PreTrainedModel, tokens_NT: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield the MLP of each layer with the inputs that it gets when the model reads the tokens.

    Only the inputs of one layer are in memory at a time.
    """
    decoder = model.base_model
    hidden_NTD = decoder.embed_tokens(tokens_NT)
    positions = decoder.rotary_emb(hidden_NTD, torch.arange(tokens_NT.shape[1])[None])
    for layer in decoder.layers:
        seen = list[Tensor]()
        with layer.mlp.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].flatten(0, 1))
        ):
            batches = (
                layer(batch, position_embeddings=positions) for batch in hidden_NTD.split(16)
            )
            hidden_NTD = torch.cat(
                [output if isinstance(output, Tensor) else output[0] for output in batches]
            )
        yield layer.mlp, torch.cat(seen)


def cut_layer(mlp: nn.Module, input_TD: Tensor, draw: torch.Generator) -> Cut:
    """Divide the neurons of an MLP into experts, and fit the router to the experts.

    draw: the generator of random numbers.
    """
    some_T = torch.randperm(ROUTER_TOKENS, generator=draw)[:CLUSTER_TOKENS]
    order_I = clusters(activations(mlp, input_TD[some_T]), mlp.down_proj.weight, draw).argsort(
        stable=True
    )
    gram_TEE = torch.cat([grams(mlp, part_TD, order_I) for part_TD in input_TD.split(2048)])
    # Divide by the trace, because otherwise a few tokens with large outputs would outweigh all
    # other tokens.
    trace_T = gram_TEE.diagonal(dim1=1, dim2=2).sum(dim=1)
    gram_TEE /= trace_T[:, None, None]
    input_TD = input_TD.float()
    size = input_TD.square().mean().sqrt()
    train, held_out = (
        (input_TD[part] / size, gram_TEE[part])
        for part in (slice(ROUTER_TOKENS), slice(ROUTER_TOKENS, None))
    )
    router_ED = ridge(*train)
    fits = list[tuple[float, Tensor, Tensor]]()
    for sharpness in SHARPNESS:
        scale_E = scales(sharpness * router_ED, *train)
        error = layer_error(sharpness * router_ED, scale_E, *held_out).item()
        fits.append((error, sharpness * router_ED / size, scale_E))
    return Cut(order_I, *min(fits, key=lambda fit: fit[0]))


def activations(mlp: nn.Module, input_TD: Tensor) -> Tensor:
    """Return activation_TI, the inputs of the MLP's down projection."""
    return mlp.act_fn(mlp.gate_proj(input_TD)) * mlp.up_proj(input_TD)


def clusters(
    activation_TI: Tensor, down_DI: Tensor, draw: torch.Generator, rounds: int = 10
) -> Tensor:
    """Return the index of each neuron's expert, by k-means with clusters of equal size.

    Two neurons are close to each other if they are active for the same tokens.
    """
    size_TI = activation_TI.float().abs() * down_DI.float().norm(dim=0)
    least_T1 = size_TI.topk(int(ACTIVE * size_TI.shape[1]), dim=1).values[:, -1:]
    active_TI = normalize((size_TI >= least_T1).float(), dim=0)
    neurons = active_TI.shape[1]
    centre_TE = active_TI[:, torch.randperm(neurons, generator=draw)[:EXPERTS]]
    for _ in range(rounds):
        cosine_IE = active_TI.T @ normalize(centre_TE, dim=0)
        expert_I = filled(cosine_IE)
        centre_TE = active_TI @ one_hot(expert_I, EXPERTS).float()
    return expert_I


def filled(cosine_IE: Tensor) -> Tensor:
    """Return an expert's index for each neuron, so that all experts have equally many neurons.

    cosine_IE: the similarity of each neuron to the centre of each expert. The pairs of a neuron and
    an expert are visited from the highest cosine to the lowest. A neuron gets the expert of
    its first pair in which the expert is not yet full.
    """
    neurons, experts = cosine_IE.shape
    expert_I = [-1] * neurons
    room_E = [neurons // experts] * experts
    for pair in cosine_IE.flatten().argsort(descending=True).tolist():
        neuron, expert = divmod(pair, experts)
        if expert_I[neuron] < 0 < room_E[expert]:
            expert_I[neuron] = expert
            room_E[expert] -= 1
    return torch.tensor(expert_I)


def grams(mlp: nn.Module, input_TD: Tensor, order_I: Tensor) -> Tensor:
    """Return gram_TEE: for each token, the scalar products of the outputs of all pairs of experts.

    order_I: the indices of the MLP's neurons, sorted by expert.
    """
    activation_TEn = activations(mlp, input_TD)[:, order_I].unflatten(1, (EXPERTS, -1))
    down_EnD = mlp.down_proj.weight[:, order_I].T.unflatten(0, (EXPERTS, -1))
    output_TED = torch.bmm(activation_TEn.transpose(0, 1), down_EnD).transpose(0, 1).float()
    return output_TED @ output_TED.transpose(1, 2)


def ridge(input_TD: Tensor, gram_TEE: Tensor) -> Tensor:
    """Return a router that is fitted by ridge regression to the norms of the experts' outputs.

    The targets of the regression are the standardised norms: for each token, the mean of the norms
    over the experts is subtracted, and the difference is divided by the standard deviation of all
    norms.

    gram_TEE: the result of `grams`, divided by its trace for each token.
    """
    norm_TE = gram_TEE.diagonal(dim1=1, dim2=2).sqrt()
    target_TE = (norm_TE - norm_TE.mean(dim=1, keepdim=True)) / norm_TE.std()
    square_DD = input_TD.T @ input_TD
    damping_DD = RIDGE * square_DD.diagonal().mean() * torch.eye(len(square_DD))
    return torch.linalg.solve(square_DD + damping_DD, input_TD.T @ target_TE).T.contiguous()


def weights(router_ED: Tensor, input_TD: Tensor) -> Tensor:
    """Return weight_TE, by which the mixture multiplies the outputs of the experts.

    The weights of a token are a softmax over the router's logits of the K experts with the highest
    logits. The weights of all other experts are 0.
    """
    logit_TE = input_TD @ router_ED.T
    least_T1 = logit_TE.topk(CHOSEN, dim=-1).values[:, -1:]
    return logit_TE.where(logit_TE >= least_T1, -torch.inf).softmax(dim=-1)


def scales(router_ED: Tensor, input_TD: Tensor, gram_TEE: Tensor) -> Tensor:
    """Return scale_E: the factors of the experts' outputs that give the smallest `layer_error`.

    The factors are the solution of a linear system.
    """
    weight_TE = weights(router_ED, input_TD)
    square_EE = torch.einsum("te,tef,tf->ef", weight_TE, gram_TEE, weight_TE)
    product_E = torch.einsum("te,tef->e", weight_TE, gram_TEE)
    return torch.linalg.solve(square_EE, product_E)


def layer_error(router_ED: Tensor, scale_E: Tensor, input_TD: Tensor, gram_TEE: Tensor) -> Tensor:
    """Return ‖mixture - MLP‖² / Σ_e ‖f_e‖², as a mean over tokens; lower is better.

    f_e: the output of expert e. MLP: the sum of f_e over all experts. mixture: the sum of
    s_e · w_e · f_e over the K chosen experts, with the factor s_e (`scale_E`) and the router's
    weight w_e.
    """
    missing_TE = 1 - scale_E * weights(router_ED, input_TD)
    return torch.einsum("te,tef,tf->", missing_TE, gram_TEE, missing_TE) / len(gram_TEE)


def assembled(model: PreTrainedModel, cut: list[Cut]) -> MixtralForCausalLM:
    """Return a Mixtral model: SmolLM2 with the experts and routers of `cut` instead of MLPs."""
    names = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "num_key_value_heads",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ]
    config = {name: getattr(model.config, name) for name in names}
    config |= {"intermediate_size": config["intermediate_size"] // EXPERTS}
    mixture = MixtralForCausalLM(
        MixtralConfig(**config, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN)
    )
    mixture.load_state_dict(
        {k: v for k, v in model.state_dict().items() if ".mlp." not in k}, strict=False
    )
    for layer, dense, part in zip(mixture.model.layers, model.model.layers, cut, strict=True):
        inputs = [
            getattr(dense.mlp, name).weight[part.order_I] for name in ("gate_proj", "up_proj")
        ]
        gate_up_EnD = torch.cat([weight.unflatten(0, (EXPERTS, -1)) for weight in inputs], dim=1)
        down_EDn = (
            dense.mlp.down_proj.weight[:, part.order_I].unflatten(1, (EXPERTS, -1)).transpose(0, 1)
        )
        layer.mlp.experts.gate_up_proj.data.copy_(gate_up_EnD)
        layer.mlp.experts.down_proj.data.copy_(down_EDn * part.scale_E[:, None, None])
        layer.mlp.gate.weight.data.copy_(part.router_ED)
    return mixture.eval().to(torch.bfloat16)


# --- Train and measure the mixture ---


def recovered(dense: CheckpointSource, cut: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train the mixture to predict what `dense` predicts, save it, and return a summary.

    The summary contains the result of `distil` and the number of held-out windows.

    cut: the folder of the mixture before training.
    """
    recovery = Recovery(TEXTS, options.tokens, options.rate, seq_len=SEQ_LEN, batch_size=4)
    wanted = Wanted(recovery.windows + recovery.held_out, SEQ_LEN, 0, "auto")
    windows = read_windows("recover", TEXTS, dense.tokenizer, wanted, dense.max_length)
    mixture = source_of(str(cut)).open()
    ALL_EXPERTS_FUNCTIONS.register("all_at_once", all_at_once)
    mixture.model.set_experts_implementation("all_at_once")
    with TemporaryDirectory() as folder:
        teacher = Teacher(dense.open())
        report = distil(recovery, mixture, teacher, windows.batch, Path(folder), 0)
    write(mixture.model, dense, options.target)
    return {"held_out_windows": recovery.held_out, **report}


def all_at_once(
    experts: nn.Module, input_TD: Tensor, chosen_TK: Tensor, weight_TK: Tensor
) -> Tensor:
    """Return the weighted sum of the experts' outputs in a layer, computed as one MLP.

    If a token is not sent to an expert, the expert's weight for this token is 0. This computation
    needs twice as many operations as computing only the chosen experts of each token. But it uses
    large matrix products, which a processor computes much faster than many small products.
    """
    weight_TE = weight_TK.new_zeros(len(input_TD), experts.num_experts).scatter(
        1, chosen_TK, weight_TK
    )
    both_TEn = linear(input_TD, experts.gate_up_proj.flatten(0, 1)).unflatten(
        1, (experts.num_experts, -1)
    )
    activation_TEn = experts._apply_gate(both_TEn) * weight_TE[:, :, None].to(both_TEn.dtype)
    return linear(activation_TEn.flatten(1), experts.down_proj.transpose(0, 1).flatten(1))


def measured(source: CheckpointSource, text: Path | None) -> dict[str, float]:
    """Return a model's perplexities on boolq-passages, on sciq-passages and on the file `text`.

    The keys of the returned dict are the names of these texts.

    Each perplexity is measured on 8,192 tokens in windows of 256; lower is better.
    """
    model = source.open()
    numbers = dict[str, float]()
    for name in ["boolq-passages", "sciq-passages", *([str(text)] if text else [])]:
        held_out = read_text(name, "evaluation", "text")
        tokens_NT = evaluation_windows(held_out, source.tokenizer, SEQ_LEN, 8_192, False, "text")
        numbers[Path(name).stem] = perplexity(window_losses(model, Batch.of(tokens_NT), 8))
    return numbers


if __name__ == "__main__":
    main()
