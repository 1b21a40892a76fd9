"""Train a pruned checkpoint on a text with LoRA: `python examples/train.py CHECKPOINT TEXT FOLDER`.

A pruned checkpoint is an ordinary transformers model, so you can train it with any loss. This
script trains the checkpoint in the folder CHECKPOINT on the text file TEXT, with the cross-entropy
of the next token, and writes the trained model to FOLDER. flap itself can train a pruned model to
predict what the dense model predicts (`recover=lora`).
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

import flap


def main(checkpoint: str, text: str, folder: str) -> None:
    model = get_peft_model(
        flap.load(checkpoint), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    tokens = AutoTokenizer.from_pretrained(checkpoint)(
        Path(text).read_text(), return_tensors="pt"
    ).input_ids[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step, batch in enumerate(tokens.unfold(0, 64, 64)[:64].split(8)):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: {loss.item():.3f} nats a token")
    model.merge_and_unload().save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
