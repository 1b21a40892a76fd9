"""Measure at which answer tokens pruning changes predictions most, and which layers cause this.

    python experiments/answers/lost.py DENSE PRUNED 50    # two checkpoints of a LLaMA

DENSE and PRUNED are the folders of the model before and after pruning, and 50 is the number of
questions. The dense model answers these questions of SciQ, each with its passage and after five
examples. Then both models read the dense model's answers. The script prints KL(dense || pruned),
the divergence of their predictions, in nats per token: for each of the first five tokens of an
answer, for the tokens that also occur in the passage, and for the other tokens.

Then the script replaces the attentions of the pruned model with the attentions of the dense model,
in one third of the layers at a time, and prints by which share KL falls each time. It does the same
with the MLPs.
"""

import sys

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

import flap
from flap.data.named_texts import rows

SHOTS = 5
NEW_TOKENS = 16
COLUMNS = ["support", "question", "correct_answer"]


def prompts(count: int) -> list[tuple[str, str]]:
    """Return `count` pairs of a prompt and the passage of its question.

    A prompt has five examples with answers, and then a question. The examples and the question come
    with their passages.
    """
    documents = [
        row for row in rows("sciq-passages", "sciq", "allenai/sciq", COLUMNS)[0] if row["support"]
    ]
    asked = [f"{row['support']}\nQuestion: {row['question']}\nAnswer:" for row in documents]
    examples = "\n\n".join(
        f"{text} {row['correct_answer']}"
        for text, row in zip(asked, documents[:SHOTS], strict=False)
    )
    return [
        (f"{examples}\n\n{asked[at]}", documents[at]["support"])
        for at in range(SHOTS, SHOTS + count)
    ]


@torch.no_grad()
def predictions(model: PreTrainedModel, ids_S: Tensor, start: int) -> Tensor:
    """Return the log-probabilities of the next token at the positions that predict answer tokens.

    ids_S: a prompt with its answer.
    start: the position of the first token of the answer.
    """
    logits_SV: Tensor = model(ids_S[None]).logits[0, start - 1 : -1]
    return logits_SV.float().log_softmax(-1)


@torch.no_grad()
def answered(model: PreTrainedModel, prompt_S: Tensor, newline: int) -> Tensor:
    """Return the prompt followed by the model's greedy answer.

    The answer ends at the first line end, or after NEW_TOKENS tokens.

    newline: the id of the token for a line end.
    """
    written_S: Tensor = model.generate(
        prompt_S[None], max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=newline
    )[0]
    return written_S


def divergence(
    dense: list[Tensor], model: PreTrainedModel, texts: list[tuple[Tensor, int]]
) -> list[Tensor]:
    """Return KL(dense || model), in nats, for each token of each answer; lower is better.

    dense: the dense model's `predictions` for each text.
    texts: prompts with answers, each with the position at which its answer begins.
    """
    log_q = [predictions(model, *text) for text in texts]
    return [(p.exp() * (p - q)).sum(-1) for p, q in zip(dense, log_q, strict=True)]


def main(dense_path: str, pruned_path: str, count: str = "50") -> None:
    """Print KL for each kind of token, and by which share KL falls with each replacement."""
    tokenizer = AutoTokenizer.from_pretrained(dense_path)
    dense, pruned = (flap.load(path).bfloat16().eval() for path in (dense_path, pruned_path))
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    asked = prompts(int(count))
    prompts_S = [tokenizer(prompt, return_tensors="pt").input_ids[0] for prompt, _ in asked]
    texts = [(answered(dense, ids, newline), len(ids)) for ids in prompts_S]
    dense_log_p = [predictions(dense, *text) for text in texts]

    lost = divergence(dense_log_p, pruned, texts)
    for place in range(min(5, max(map(len, lost)))):
        of_place = torch.stack([kl[place] for kl in lost if len(kl) > place])
        print(f"token {place + 1}: {of_place.mean():.3f} nats, {len(of_place)} answers")
    passages = [
        set(tokenizer(f" {passage}", add_special_tokens=False).input_ids) for _, passage in asked
    ]
    copied = [
        int(i) in seen
        for (ids, start), seen in zip(texts, passages, strict=True)
        for i in ids[start:]
    ]
    every = torch.cat(lost)
    is_copied = torch.tensor(copied)
    print(
        f"of the passage {every[is_copied].mean():.3f}, others "
        f"{every[~is_copied].mean():.3f}, all {every.mean():.3f}"
    )

    third = len(dense.model.layers) // 3
    for part in ("self_attn", "mlp"):
        for first in range(0, 3 * third, third):
            layers = range(first, first + third)
            own = {k: getattr(pruned.model.layers[k], part) for k in layers}
            for k in layers:
                setattr(pruned.model.layers[k], part, getattr(dense.model.layers[k], part))
            left = torch.cat(divergence(dense_log_p, pruned, texts)).mean()
            print(
                f"{part} of layers {first} to {first + third - 1}: "
                f"{1 - left / every.mean():.2f} of it comes back"
            )
            for k in layers:
                setattr(pruned.model.layers[k], part, own[k])


if __name__ == "__main__":
    main(*sys.argv[1:])
