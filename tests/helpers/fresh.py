"""Load checkpoints in a new process in which flap is not installed.

There are two kinds of checkpoints: remote checkpoints are loaded with `trust_remote_code=True`, and
stock checkpoints without it.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.cases import tokens

WITHOUT_FLAP = """
import sys
sys.path.append("site")
try:
    import flap
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("flap can be imported here")
"""
RELOAD = """
import os, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
work, *checkpoints = sys.argv[1:]
tokens = load_file(work + "/tokens")["tokens"]
found = {}
for checkpoint in checkpoints:
    how, directory = checkpoint.split(":", 1)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=how == "remote")
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = auto.from_pretrained(directory, trust_remote_code=how == "remote").eval()
    decoder = AutoModel.from_pretrained(directory, trust_remote_code=how == "remote").eval()
    with torch.no_grad():
        found[directory] = model(input_ids=tokens).logits
        found[directory + ".decoder"] = decoder(input_ids=tokens).last_hidden_state
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found[directory + ".generated"] = model.generate(tokens[:2, :5], **options)
    assert os.path.exists(work + "/modules") == (how == "remote")  # code of theirs
    assert "flap" not in sys.modules
save_file(found, work + "/found")
"""


def link_other_packages(folder: Path) -> None:
    """Create a folder with links to all installed packages except flap."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("flap"):
            (folder / path.name).symlink_to(path)


def in_a_fresh_process(
    work: Path, stock: Iterable[Path] = (), remote: Iterable[Path] = ()
) -> dict[str, Tensor]:
    """Run checkpoints on `tokens(seed=7)` in a new process.

    The result maps the path of each checkpoint to its logits. It maps the path plus ".decoder" to
    the last hidden states, and the path plus ".generated" to generated tokens. Stock checkpoints
    are loaded first, before code from any checkpoint has run.
    """
    checkpoints = [
        f"{how}:{one}" for how, some in (("stock", stock), ("remote", remote)) for one in some
    ]
    save_file({"tokens": tokens(seed=7)}, work / "tokens")
    environment = {
        "HF_MODULES_CACHE": str(work / "modules"),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    link_other_packages(work / "site")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WITHOUT_FLAP + RELOAD, str(work), *checkpoints],
        cwd=work,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return load_file(work / "found")
