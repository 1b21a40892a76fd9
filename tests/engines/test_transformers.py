"""Checkpoints give the same results in the oldest supported transformers as in a newer version.

`make.py` has stored the results of the newer version, which is in the main environment. flap is not
imported in the process that loads the checkpoints.
"""

import os
import subprocess
import sys
from pathlib import Path

CHECKPOINTS = Path(__file__).parents[2] / "build" / "engines"
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/modeling_flap.py"))
COMPARE = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
# Its kernel `sdpa` leaves out the softcapping of Gemma 2, dense or pruned. Later versions do not
# offer this kernel there.
OPTIONS = {"dtype": "float32", "attn_implementation": "eager"}
for checkpoint in sys.argv[1:]:
    known = load_file(checkpoint + ".safetensors")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, **OPTIONS)
    model.eval()
    every_NT = torch.cat([known["prompts_NT"], known["generated_NT"]], dim=1)
    with torch.no_grad():
        logprobs_NTV = model(input_ids=every_NT).logits[:, :-1].log_softmax(-1)
    found_NT = logprobs_NTV.gather(-1, every_NT[:, 1:, None])[..., 0]
    # relative: a token with a massive activation is 4e-4 off itself in float32
    bounds = {"rtol": 1e-4, "atol": 1e-4}
    message = lambda text: checkpoint + text
    torch.testing.assert_close(found_NT, known["logprobs_NT"], **bounds, msg=message)
assert "flap" not in sys.modules
"""


def test_it_computes_what_the_main_environment_computes(tmp_path: Path) -> None:
    assert len(NAMES) >= 13
    checkpoints = [str(CHECKPOINTS / name) for name in NAMES]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, *checkpoints],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
