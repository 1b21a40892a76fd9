"""What the removal of a token costs: the dense model on the same windows, tokenised with and without it.

python experiments/bytes/removal.py DENSE TRIMMED TEXT    # two checkpoints and a text; prints fifty tokens

A token's cost is what its parts cost the trimmed model, less what it cost the dense one, in nats a time.
"""

import sys
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import torch
from frontier import windows
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

import flap
from flap.data import NO_TOKEN, text_bytes


@torch.no_grad()
def nats(checkpoint: Path, tokens_NT: Tensor) -> Tensor:
    """The nats of each token of the windows; the first of a window costs none."""
    model = flap.load(checkpoint, dtype=torch.bfloat16)
    found = torch.zeros(tokens_NT.shape)
    for nats_T, tokens_T in zip(found, tokens_NT, strict=True):
        logits_TV = model(input_ids=tokens_T.clamp(min=0)[None]).logits[0, :-1].float()
        nats_T[1:] = cross_entropy(logits_TV, tokens_T[1:], ignore_index=NO_TOKEN, reduction="none")
    return found


def main() -> None:
    dense, trimmed, text = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    tokenizers = old, new = [AutoTokenizer.from_pretrained(path) for path in (dense, trimmed)]
    pair = [windows(text, old, own)[0] for own in tokenizers]
    costs = [nats(path, tokens_NT) for path, tokens_NT in zip((dense, trimmed), pair, strict=True)]
    sizes = [text_bytes(tokens_NT, own) for tokens_NT, own in zip(pair, tokenizers, strict=True)]
    kept, found = new.get_vocab(), defaultdict[tuple[str, ...], list[float]](list)
    for n in range(len(pair[0])):
        ends = [0, *accumulate(sizes[1][n].tolist())]
        place = {end: j for j, end in enumerate(ends)}
        before = 0
        for i, size in enumerate(sizes[0][n].tolist()):
            token, after = old.convert_ids_to_tokens(int(pair[0][n, i])), before + size
            if i and token not in kept and before in place and after in place:
                parts = slice(place[before], place[after])
                names = new.convert_ids_to_tokens(pair[1][n, parts].tolist())
                found[(token, *names)].append((costs[1][n, parts].sum() - costs[0][n, i]).item())
            before = after
    every = [cost for of_token in found.values() for cost in of_token]
    print(f"{len(every)} removed tokens: {sum(every) / len(every):.2f} nats each")
    for (token, *parts), of_token in sorted(found.items(), key=lambda item: -len(item[1]))[:50]:
        print(f"| `{token}` | `{' '.join(parts)}` | {len(of_token)} | {sum(of_token) / len(of_token):.1f} |")


if __name__ == "__main__":
    main()
