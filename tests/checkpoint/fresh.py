"""Checkpoints in a process that never saw the model: without this package, or with nothing but `import flap`."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.cases import tokens

WITHOUT_FLAP = """
import sys
class NoFlap:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "flap":
            raise ImportError("flap is not installed here")
sys.meta_path.insert(0, NoFlap())
"""
RELOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
remote, work, *directories = sys.argv[1:]
tokens = load_file(work + "/tokens")["tokens"]
found = {}
for directory in directories:
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=remote == "remote").eval()
    decoder = AutoModel.from_pretrained(directory, trust_remote_code=remote == "remote").eval()
    with torch.no_grad():
        found[directory] = model(input_ids=tokens).logits
        found[directory + ".decoder"] = decoder(input_ids=tokens).last_hidden_state
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found[directory + ".generated"] = model.generate(tokens[:2, :5], **options)
save_file(found, work + "/found")
assert ("flap" in sys.modules) == (remote != "remote")
"""


def in_a_fresh_process(directories: Iterable[Path], work: Path, with_flap: bool) -> dict[str, Tensor]:
    """What the checkpoints compute of `tokens(seed=7)`: logits under each path, and .decoder and .generated of it."""
    save_file({"tokens": tokens(seed=7)}, work / "tokens")
    environment = {"HF_MODULES_CACHE": str(work / "modules"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    code = ("import flap\n" if with_flap else WITHOUT_FLAP) + RELOAD
    done = subprocess.run(
        [sys.executable, "-c", code, "flap" if with_flap else "remote", str(work), *map(str, directories)],
        cwd=work,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (work / "modules").exists() == (not with_flap)
    return load_file(work / "found")
