"""Do tiny runs, whose results are compared with the reference results in tests/runs/golden.json.

If the results of these runs change, `flap.storage.VERSION` must be increased, so that flap does not
reuse results that earlier code has stored.

`python -m tests.helpers.golden_run` writes new reference results.
"""

import json
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flap.pipeline import run
from flap.storage import VERSION, digest
from tests.cases import VOCAB, tiny_model
from tests.helpers.runs import composed, tiny

GOLDEN = Path(__file__).parents[1] / "runs" / "golden.json"
RUNS = {
    "FLAP": ["ratio=0.4"],
    "flap_plus": [
        "ratio=0.4",
        "method=flap_plus",
        "calibration.num_samples=20",
        "structure.tokens=64",
        "compensation.ridge=0.01",
    ],
    "trained": [
        "ratio=0.4",
        "calibration.num_samples=20",
        "recover=reconstruct",
        "recover.epochs=1",
    ],
}


def results(folder: Path) -> dict[str, Any]:
    """Do the runs of RUNS. For each run name, return the plan's digest and the measured results."""
    torch.set_num_threads(1)
    base = _inputs(folder)
    found = {}
    for name, options in RUNS.items():
        report = run(composed(*base, *options, "use_cache=false"), folder / name)
        assert report.plan is not None
        numbers = {
            f"{which}/{number}": value
            for which, values in report.evaluation.items()
            for number, value in values.items()
        }
        if report.recovery:
            numbers["nats_after"] = report.recovery["nats_after"]
        found[name] = {"plan": digest(report.plan.to_dict()), "numbers": numbers}
    return found


def _inputs(folder: Path) -> list[str]:
    """Save a tiny model, its tokenizer with words such as w7, and a text of such words.

    Return the arguments of a run with these inputs.
    """
    special = ["<s>", "</s>", "<unk>"]
    words = [*special, *(f"w{i}" for i in range(VOCAB - len(special)))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tiny_model("llama-gqa").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = folder / "words.txt"
    text.write_text(" ".join(random.Random(0).choices(words[3:], k=3000)))
    return [*tiny(folder / "model", text), f"cache_dir={folder / 'cache'}"]


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        golden = {"version": VERSION, "results": results(Path(scratch))}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{GOLDEN} written", file=sys.stderr)
