"""A run with the plan of another run keeps the same heads and neurons, but computes new biases."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flap.method.allocation import PruningPlan
from flap.method.importance import WIFV
from flap.pipeline import run
from flap.results import Report
from flap.results.run_folder import read_run
from tests.cases import tiny_model
from tests.helpers.marks import quick
from tests.helpers.runs import composed, tensors_of, tiny

Run = Callable[..., Report]


@pytest.fixture(scope="module")
def first(run_tiny: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    run_tiny(folder)
    return folder


@pytest.mark.parametrize("form", quick(1, ["run", "file"]))
@pytest.mark.parametrize("placement", quick(1, ["device", "stream"]))
def test_another_seed_gives_the_same_units_and_other_biases(
    form: str,
    placement: str,
    first: Path,
    run_tiny: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WIFV, "score", lambda *_: pytest.fail("something was scored"))
    plan = first if form == "run" else first / "plan.json"
    report = run_tiny(
        tmp_path, "ratio=null", f"plan={plan}", "seed=1", f"model.placement={placement}"
    )
    assert (tmp_path / "plan.json").read_text() == (first / "plan.json").read_text()
    before = tensors_of(first)
    after = tensors_of(tmp_path)
    weights = [name for name in before if not name.endswith("bias")]
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in weights
    )
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - weights)
    assert "score" not in report.seconds and report.sources["plan"] == str(plan)
    assert (
        report.ratio["realised_decoder"]
        == Report.load(first / "report.json").ratio["realised_decoder"]
    )


def test_without_compensation_nothing_is_calibrated(
    first: Path, run_tiny: Run, tmp_path: Path
) -> None:
    report = run_tiny(
        tmp_path, "ratio=null", f"plan={first}", "compensation=none", "mask_only=true"
    )
    assert not {"calibrate", "score"} & report.seconds.keys() and report.weight_passes <= 1
    assert read_run(tmp_path).requested == str(round(report.ratio["realised_decoder"], 6))


@pytest.mark.long
def test_neurons_and_whole_experts(
    base: list[str], text_file: Path, tokenizer, tmp_path: Path
) -> None:
    run(composed(*base, "ratio=0.8"), tmp_path / "thin")
    tiny_model("mixtral").save_pretrained(tmp_path / "mixtral")
    tokenizer.save_pretrained(tmp_path / "mixtral")
    mixture = tiny(tmp_path / "mixtral", text_file)
    report = run(composed(*mixture, "ratio=0.3", "structure.experts=true"), tmp_path / "experts")
    kept = PruningPlan.load(tmp_path / "experts" / "plan.json").layers
    assert [layer["experts"] for layer in report.layers] == [len(layer.mlp) for layer in kept]
    assert [layer["experts"] for layer in report.layers_before] == [6] * 3
    run(composed(*mixture, "ratio=0.3"), tmp_path / "neurons")
    for name, inputs in {"thin": base, "experts": mixture, "neurons": mixture}.items():
        run(composed(*inputs, f"plan={tmp_path / name}"), tmp_path / "again" / name)
        plans = [
            PruningPlan.load(folder / name / "plan.json")
            for folder in (tmp_path, tmp_path / "again")
        ]
        before, after = (tensors_of(folder / name) for folder in (tmp_path, tmp_path / "again"))
        assert plans[0] == plans[1] and before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)
    plan = json.loads((tmp_path / "neurons" / "plan.json").read_text())
    plan["layers"][1]["neurons"].pop()
    (tmp_path / "uneven.json").write_text(json.dumps(plan))
    with pytest.raises(
        ValueError,
        match=r"layer 1 cannot keep these .* of its 144 neurons \(6 experts of as many each",
    ):
        run(composed(*mixture, f"plan={tmp_path / 'uneven.json'}"), tmp_path / "refused")


def test_a_plan_that_has_changed_is_applied_again(
    quick_flap, base: list[str], first: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    plan = json.loads((first / "plan.json").read_text())
    arguments = [
        *base,
        "plan=mine/plan.json",
        "hydra.run.dir=out",
        "eval.perplexity.max_tokens=320",
    ]
    for neurons in (10, 20):
        plan["layers"][0]["neurons"] = list(range(neurons))
        (tmp_path / "mine" / "plan.json").write_text(json.dumps(plan))
        done = quick_flap(*arguments)
        assert done.returncode == 0, done.stderr
        assert Report.load(tmp_path / "out" / "report.json").layers[0]["neurons"] == neurons
    assert "done already" in quick_flap(*arguments).stderr
    found = read_run(tmp_path / "out")
    assert (found.metric, found.structure, found.method) == ("plan", "plan", "custom")
    assert found.report.config["run_name"] == "tiny_plan-mine_s0"
