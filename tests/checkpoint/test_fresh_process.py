"""A checkpoint in a process that never saw the model: without this package, and with nothing but `import flap`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.pruned import Saved, generated

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
remote, out, *directories = sys.argv[1:]
found = {}
for directory in directories:
    tokens = load_file(directory + ".expected")["tokens"]
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=remote == "remote").eval()
    decoder = AutoModel.from_pretrained(directory, trust_remote_code=remote == "remote").eval()
    with torch.no_grad():
        found[directory] = model(input_ids=tokens).logits
        found[directory + ".decoder"] = model.lm_head(decoder(input_ids=tokens).last_hidden_state)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found[directory + ".generated"] = model.generate(tokens[:2, :5], **options)
save_file(found, out)
assert ("flap" in sys.modules) == (remote != "remote")
"""


@pytest.mark.parametrize("remote", [True, False], ids=["without-flap", "import-flap"])
def test_a_fresh_process_computes_the_same(remote: bool, all_saved: dict[str, Saved], tmp_path: Path) -> None:
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    code = (WITHOUT_FLAP if remote else "import flap\n") + RELOAD
    directories = [str(saved.directory) for saved in all_saved.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, "remote" if remote else "flap", str(tmp_path / "found"), *directories],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found")
    for saved in all_saved.values():
        expected = load_file(f"{saved.directory}.expected")["logits"]
        assert torch.equal(found[str(saved.directory)], expected)
        assert torch.equal(found[f"{saved.directory}.decoder"], expected)
        assert torch.equal(found[f"{saved.directory}.generated"], generated(saved.model))
    assert (tmp_path / "modules").exists() == remote
