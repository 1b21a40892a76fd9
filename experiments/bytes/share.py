"""How often removed tokens are in text that nobody counted, beside what their worth says: bands of the ranking.

python experiments/bytes/share.py boolq-passages,sciq-passages boolq-passages sciq-passages hellaswag-passages
The first argument names the texts that are counted, in their calibration part; then the evaluation parts to compare.
"""

import sys

import torch
from torch import Tensor

from flap.config import ModelConfig
from flap.data.text import Text
from flap.data.text_files import read_text
from flap.data.window_pool import tokenized
from flap.models import find_model
from flap.storage import cache_root
from flap.vocabulary import Ranking, Tokens
from flap.vocabulary.expected import expected, sampled

EDGES = (8192, 16384, 24576, 32768, 40960)


def main(counted: list[str], unseen: list[str]) -> None:
    smollm = ModelConfig("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "bfloat16")
    source = find_model(smollm, cache_root(None), False)
    model, tokenizer = source.open(), source.tokenizer
    rows = model.adapter.vocab_size

    def counts(text: Text) -> Tensor:
        return tokenized(text, tokenizer, False, True)[0].bincount(minlength=rows).double()

    texts = [read_text(name, "calibration", "counted") for name in counted]
    windows = [sampled(text, tokenizer, False, len(texts)) for text in texts]
    counts_V, share_V = sum(map(counts, texts)), expected(model, windows)
    ranking = Ranking.of(Tokens.of(tokenizer, rows), counts_V, share_V)
    ids_R = torch.tensor([ranking.tokens.ids[name] for name in ranking.names])
    columns = {"counted": counts_V, "expected": share_V}
    columns |= {name: counts(read_text(name, "evaluation", "unseen")) for name in unseen}
    print("| tokens |", " | ".join(columns), "|")
    for start, end in zip(EDGES, (*EDGES[1:], len(ids_R)), strict=True):
        shares = (100 * float(one_V[ids_R[start:end]].sum() / one_V.sum()) for one_V in columns.values())
        print(f"| {start} to {end} |", " | ".join(f"{share:.2f}" for share in shares), "|")


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
