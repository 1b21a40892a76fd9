"""A run writes report.json (schema 1), report.md and layers.png.

report.md contains tables. layers.png shows how many heads and neurons each layer keeps.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flap.method.allocation import PruningPlan
from flap.results import Report, markdown
from flap.results.layer_plots import draw_layers
from flap.results.notices import notices, remarks
from flap.results.report_tables import tables

# Keys that report.json and its sections must have, because other programs may depend on them.
SCHEMA_1: dict[str, set[str]] = {
    "schema": set(),
    "config": {"model", "calibration", "metric", "structure", "compensation", "ratio", "seed"},
    "versions": {"python", "torch", "transformers", "flap-pruning"},
    "git": {"commit", "dirty"},
    "device": set(),
    "parameters": {"total_before", "total_after", "decoder_before", "decoder_after"},
    "ratio": {"requested", "realised_decoder", "realised_total"},
    "layers": set(),
    "evaluation": {"dense", "pruned"},
    "seconds": {"load", "calibrate", "score", "allocate", "compress", "save", "evaluate", "total"},
    "peak_memory_bytes": {"host", "device"},
    "statistics_cache": set(),
    "checkpoint": set(),
}
NAME = "words.txt/perplexity@16"
DESTROYED = (
    "words.txt/perplexity@16 is 4.0 times the dense model's: little of the model is left. "
    "To lose less, use a lower ratio, method=flap_plus, or prompts of your application "
    "(calibration=answers)."
)
NOTICE = (
    "Measured only on text like the calibration's; add an out-of-domain text to "
    "eval.perplexity.datasets."
)


def test_report_has_the_keys_of_schema_1(report: dict[str, Any]) -> None:
    assert report["schema"] == 1
    assert report.keys() >= SCHEMA_1.keys()
    for section, keys in SCHEMA_1.items():
        if keys:
            assert report[section].keys() >= keys, section
    assert len(report["layers"]) == 4
    for layer in report["layers"]:
        assert layer.keys() == {"query_heads", "kv_heads", "neurons"}


def test_a_model_of_which_little_is_left_is_told_what_helps() -> None:
    """The report warns if a perplexity is more than three times the perplexity of the dense model.

    The warning recommends flap_plus, unless the run already uses it.
    """

    def told(perplexity: float, method: str) -> list[str]:
        numbers = {
            "dense": {NAME: 20.0, "c4/perplexity@16": 30.0},
            "pruned": {NAME: perplexity, "c4/perplexity@16": 99},
        }
        return remarks(Report({"method": method}, evaluation=numbers))

    assert told(80.0, "flap") == [DESTROYED]
    assert told(80.0, "flap_plus") == [DESTROYED.replace("method=flap_plus, ", "")]
    assert told(60.0, "flap")[0].startswith("c4/perplexity@16 is 3.3 times")
    without = {"dense": {NAME: 20.0}, "pruned": {NAME: 60.0}}
    assert remarks(Report({"method": "flap"}, evaluation=without)) == []


def test_a_trimmed_model_of_which_little_is_left_is_told_so_by_its_bits_per_byte() -> None:
    """The warning that little of a trimmed model is left is based on bits per byte.

    It is not based on perplexities, which cannot be compared, because the dense and the pruned
    model have different tokenizers.
    """
    bits = "words.txt/bits_per_byte@16"

    def told(pruned: float) -> list[str]:
        dense = {NAME: 20.0, bits: 1.0}
        numbers = {"dense": dense, "pruned": {bits: pruned}}
        vocabulary = {"before": 512, "after": 320, "covered": 1.0}
        return remarks(Report({"method": "flap"}, evaluation=numbers, vocabulary=vocabulary))

    [two_tokenizers] = told(1.3)
    assert two_tokenizers.endswith("perplexities do not compare. Bits per byte do.")
    _, destroyed = told(2.0)
    assert destroyed.startswith(
        f"{bits} is 2.0 times the dense model's: little of the model is left."
    )


def test_what_travels_says_nothing_of_trackers_and_is_json(
    run_tiny: Callable[..., Report], tmp_path: Path
) -> None:
    """No file that a run writes contains the password of its tracker.

    report.json, evaluation.json and flap.json are valid JSON, although the config contains an
    infinite value.
    """
    run_tiny(
        tmp_path,
        "tracking=mlflow",
        "tracking.uri=http://alice:s3cret@127.0.0.1:9",
        "cache_wait_seconds=inf",
    )
    for file in ("report.json", "evaluation.json", "checkpoint/flap.json"):
        json.loads((tmp_path / file).read_text(), parse_constant=pytest.fail)
    label = json.loads((tmp_path / "checkpoint" / "flap.json").read_text())
    config = label["provenance"]["config"]
    assert not {"tracking", "cache_dir"} & config.keys()
    assert str(tmp_path) not in json.dumps(config["checkpoint"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["config"]["tracking"]["uri"] == "http://127.0.0.1:9"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes()


def test_layers_and_parameters_are_those_of_the_plan_and_the_checkpoint(
    finished: Path, report: dict[str, Any]
) -> None:
    """The report has the layer widths of the plan, and the parameter counts that follow from them.

    A layer of the dense model has 4 KV heads (1536 parameters each) and 56 neurons (96 each).
    """
    plan = PruningPlan.load(finished / "plan.json")
    decoder_after = 0
    for reported, kept in zip(report["layers"], plan.layers, strict=True):
        heads = len(kept.attention)
        neurons = len(kept.mlp)
        assert reported == {"query_heads": 2 * heads, "kv_heads": heads, "neurons": neurons}
        decoder_after += 1536 * heads + 96 * neurons

    parameters = report["parameters"]
    assert parameters["decoder_before"] == 46080
    assert parameters["decoder_after"] == decoder_after
    saved = load_file(Path(report["checkpoint"]) / "model.safetensors")
    assert parameters["total_after"] == sum(tensor.numel() for tensor in saved.values())

    ratio = report["ratio"]
    kept_share = parameters["total_after"] / parameters["total_before"]
    assert ratio["requested"] == 0.4
    assert ratio["realised_decoder"] == pytest.approx(1 - decoder_after / 46080)
    assert ratio["realised_total"] == pytest.approx(1 - kept_share)


def test_seconds_numbers_and_warnings_are_complete(report: dict[str, Any]) -> None:
    stages = dict(report["seconds"])
    total = stages.pop("total")
    assert total == pytest.approx(sum(stages.values()))
    assert list(report["evaluation"]) == ["dense", "pruned"]
    for numbers in report["evaluation"].values():
        assert list(numbers) == [NAME, "words.txt/bits_per_byte@16"]
    assert any(NAME in warning and "calibration text" in warning for warning in report["warnings"])


def test_markdown_holds_the_numbers(finished: Path, report: dict[str, Any]) -> None:
    text = (finished / "report.md").read_text()
    dense = report["evaluation"]["dense"][NAME]
    pruned = report["evaluation"]["pruned"][NAME]
    error = report["difference_stderr"][NAME]
    assert 0 < error < pruned
    change = pruned - dense
    relative_change = pruned / dense - 1
    noise = " within noise" if report["difference_p_value"][NAME] >= 0.05 else ""
    shown_change = f"{change:+.2f} ± {error:.2f} ({relative_change:+.1%}){noise}"
    assert f"| {NAME} | {dense:.3f} | {pruned:.3f} | {shown_change} | calibration |" in text


def test_markdown_holds_the_parameters_and_the_layers(
    finished: Path, report: dict[str, Any]
) -> None:
    text = (finished / "report.md").read_text()
    parameters = report["parameters"]
    for part in ("total", "decoder"):
        before = parameters[f"{part}_before"]
        after = parameters[f"{part}_after"]
        share = after / before
        assert f"| {before:,} | {after:,} ({share:.1%}) |" in text
    assert f"{report['ratio']['realised_decoder']:.4f} of 0.4 asked" in text
    for i, layer in enumerate(report["layers"]):
        cells = [i, layer["query_heads"], layer["kv_heads"], layer["neurons"]]
        row = " | ".join(map(str, cells))
        assert f"| {row} |" in text


def test_standard_errors_stand_beside_their_numbers() -> None:
    numbers = {
        "piqa/acc": 0.65,
        "piqa/acc_stderr": 0.062,
        "c4/kl@128": 0.7005,
        "c4/kl@128_stderr": 0.0463,
    }
    report = Report({}, evaluation={"dense": {"piqa/acc": 0.667}, "pruned": numbers})
    report.difference_stderr = {"piqa/acc": 0.044}
    report.difference_p_value = {"piqa/acc": 0.7}
    report.parameters = {
        "total_before": 1,
        "total_after": 1,
        "decoder_before": 1,
        "decoder_after": 1,
    }
    report.ratio = {"realised_decoder": 0.2, "requested": 0.2}
    assert tables(report)[0].rows == [
        ["piqa/acc", "0.667", "0.650 ± 0.062", "-0.017 ± 0.044 within noise"],
        ["c4/kl@128", "", "0.7005 ± 0.0463", ""],
    ]


def test_numbers_of_the_calibrations_domain_alone_are_told() -> None:
    domains = {"c4/perplexity@16": "other", NAME: "calibration"}
    numbers = {"dense": {}, "pruned": {NAME: 20.0}}
    assert remarks(Report({}, evaluation=numbers, domains=domains)) == [NOTICE]
    numbers["pruned"]["c4/perplexity@16"] = 30.0
    assert remarks(Report({}, evaluation=numbers, domains=domains)) == []


def test_documents_that_were_left_out_are_told() -> None:
    numbers = {"dense": {}, "pruned": {"boolq/acc": 0.7}}
    left_out = {"boolq": 1553, "sciq_answers": 667}
    line = (
        "Documents left out, because the run has read them in its texts: 1,553 of boolq, "
        "667 of sciq_answers."
    )
    report = Report({}, evaluation=numbers, left_out=left_out)
    assert remarks(report) == [line]
    assert line in notices(report)


def test_a_report_of_an_earlier_version_left_nothing_out(
    report: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    earlier = dict(report)
    del earlier["left_out"]
    path.write_text(json.dumps(earlier))
    assert Report.load(path).left_out == {}


def test_rounding_says_what_it_costs(run_tiny: Callable[..., Report], tmp_path: Path) -> None:
    report = run_tiny(tmp_path, "ratio=0.25", "round_to=32", "structure.min_heads=3")
    for layer in report.layers:
        assert layer["neurons"] == 32
        assert layer["kv_heads"] >= 3

    # At a ratio of 0.25, about 11520 of 46080 parameters have to be removed. Each of the four
    # layers loses 24 neurons with 96 parameters each, which are 9216 parameters. The remaining 2304
    # parameters correspond to 1.5 KV heads with 1536 parameters each, so one or two KV heads are
    # removed.
    realised = report.ratio["realised_decoder"]
    removed_heads = (realised * 46080 - 4 * 24 * 96) / 1536
    assert removed_heads in (pytest.approx(1), pytest.approx(2))
    cost = realised - 0.25
    assert report.ratio["rounding_cost"] == cost
    line = f"{realised:.4f} of 0.25 asked ({cost:+.4f} by whole blocks)"
    assert line in (tmp_path / "report.md").read_text()


def test_what_is_not_finite_is_valid_json_and_back(report: dict[str, Any], tmp_path: Path) -> None:
    infinite = {
        "evaluation": {"dense": {NAME: 5.0}, "pruned": {NAME: math.inf}},
        "difference_stderr": {NAME: math.inf},
        "target": {"bytes": {"asked": 1.0, "dense": 2.0, "realised": math.inf}},
    }
    path = tmp_path / "report.json"
    Report(**report | infinite).save(path)
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert written["evaluation"] == {"dense": {NAME: 5.0}, "pruned": {NAME: None}}
    again = Report.load(path)
    for section, content in infinite.items():
        assert getattr(again, section) == content
    assert f"| {NAME} | 5.000 | inf |  |" in markdown(again)


def test_there_is_a_picture(report: dict[str, Any], tmp_path: Path) -> None:
    # Matplotlib must show this name as text, and not as a formula.
    config = report["config"] | {"run_name": "$a{_$"}
    picture = tmp_path / "layers.png"
    draw_layers(Report(**report | {"config": config}), picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_experts_that_no_held_out_token_was_sent_to_have_no_error() -> None:
    def fit(ridge: float | None, error: float, of_bias: float) -> dict[str, Any]:
        return {"ridge": ridge, "held_out_error": error, "held_out_error_of_bias": of_bias}

    unseen = {f"layer 0 MLP expert {expert}": fit(None, 0.0, 0.0) for expert in range(5)}
    seen = {
        "layer 0 attention": fit(0.1, 1.0, 4.0),
        "layer 1 attention": fit(None, 2.0, 2.0),
    }
    assert notices(Report({}, repairs=unseen)) == notices(Report({}))
    assert notices(Report({}, repairs=seen | unseen))[-1] == (
        "Linear compensation leaves 62.5% (median over blocks) of the error that the bias leaves "
        "on held-out calibration tokens. It was no better there in 1 of 2 blocks and experts: the "
        "bias stays."
    )


HOSTILE = "<script>alert(1)</script> | `x` ](http://evil) *b*\n\n# &amp;"
SHOWN = r"&lt;script&gt;alert(1)&lt;/script&gt; \| \`x\` \](http://evil) \*b\* # &amp;amp;"


def test_names_are_no_markup(report: dict[str, Any]) -> None:
    name = f"{HOSTILE}/perplexity@16"
    report = report | {
        "config": report["config"] | {"run_name": HOSTILE},
        "checkpoint": HOSTILE,
        "evaluation": {"dense": {name: 5.0}, "pruned": {name: 50.0}},
        "warnings": [HOSTILE],
        "loads_with": HOSTILE,
    }
    text = markdown(Report(**report))
    assert "<script>" not in text
    lines = text.splitlines()
    assert lines[0] == f"# {SHOWN}"
    assert f"Checkpoint: {SHOWN}" in lines
    assert f"Warning: {SHOWN}" in lines
    [row] = [line for line in lines if "perplexity@16 |" in line]
    assert row.startswith(f"| {SHOWN}/perplexity@16 | 5.000 | 50.000 | ")
    assert f"| loads with |  | {SHOWN} |" in lines
    assert [line for line in lines if line.startswith("#")] == [f"# {SHOWN}"]
