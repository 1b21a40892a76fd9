"""Prune a model in Python, save it, and load it again.

    python examples/prune.py MODEL TEXT FOLDER

MODEL is a directory or a hub id. TEXT is a .txt, .jsonl or .parquet file to calibrate on. FOLDER is
where the pruned model is saved.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import flap


def main(model_id: str, text: str, folder: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_id)
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    report = flap.prune(model, tokenizer, ratio=0.2, dataset=text, num_samples=16, seq_len=128)
    print(f"removed {report.ratio['realised_decoder']:.1%} of the decoder's Linear parameters")

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pruned = flap.load(folder)
    prompt = tokenizer("The old tree", return_tensors="pt")
    tokens = pruned.generate(**prompt, max_new_tokens=8)
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
