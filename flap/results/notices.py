"""The notices of a run, as sentences in report.md."""

from statistics import median

from flap.evaluation.base import TEMPLATED
from flap.results.number_texts import domain_of, is_perplexity
from flap.results.record import Record

DESTROYED = 3.0  # times the dense perplexity, from which on a reader is told what helps


def notices(report: Record) -> list[str]:
    """Return the notices, one paragraph each: warnings, texts, training, and linear compensation."""
    others = [
        text
        for of in (_in_chat, _unanswered, _own_text, _compensation, _recovery)
        for text in of(report)
    ]
    return [f"Warning: {warning}" for warning in report.warnings] + remarks(report) + others


def remarks(report: Record) -> list[str]:
    """Return the notices that stand on the console, too: how to take the numbers."""
    return [*_destroyed(report), *_one_domain(report), *_left_out(report)]


def _destroyed(report: Record) -> list[str]:
    """Return a notice of the text that lost most, where its perplexity is far above the dense one: what helps."""
    before = report.evaluation["dense"]
    after = report.evaluation["pruned"]
    times = {
        name: after[name] / before[name]
        for name in after
        if is_perplexity(name) and before.get(name)
    }
    worst = max(times, key=times.__getitem__, default="")
    if times.get(worst, 0) <= DESTROYED:
        return []
    plus = "method=flap_plus, " * (report.config["method"] != "flap_plus")
    helps = f"a lower ratio, {plus}or prompts of your use (calibration=answers)"
    return [
        f"{worst} is {times[worst]:,.1f} times the dense one: little of the model is left. What helps: {helps}."
    ]


def _own_text(report: Record) -> list[str]:
    return [
        f"The model wrote {own['tokens']:,} tokens of its {use} text itself, from {own['begins_with']}, in "
        f"{own['seconds']:.0f} seconds; {own['dropped']} sequences were dropped as loops, too short or too long"
        + (f", {own['cut']} answers end at calibration.max_new_tokens." if own.get("cut") else ".")
        for use, own in (report.own_text | report.recovery.get("own_text", {})).items()
    ]


def _recovery(report: Record) -> list[str]:
    trained = report.recovery
    if not trained:
        return []
    best = trained["best_after_tokens"]
    early = ""
    if trained["stopped_early"]:
        early = f" It ended early, because it got no better; what it had after {best:,} is kept."
    return [
        f"Trained after compression (recover={trained['choice']}) on {trained['tokens']:,} tokens: the divergence from "
        f"the dense model on held-out windows went from {trained['nats_before']:.4f} to {trained['nats_after']:.4f} "
        f"nats a token.{early} These numbers are not training-free."
    ]


def _compensation(report: Record) -> list[str]:
    """Return a sentence on the fit reports of linear compensation: the error left, and how many blocks keep the bias.

    Experts that no held-out token was sent to have no error, and keep the bias.
    """
    fits = [fit for fit in report.repairs.values() if fit["held_out_error_of_bias"]]
    if not fits:
        return []
    ratio = median(fit["held_out_error"] / fit["held_out_error_of_bias"] for fit in fits)
    biased = sum(fit["ridge"] is None for fit in fits)
    return [
        f"Linear compensation leaves {ratio:.1%} (median over blocks) of the error that the bias leaves on held-out "
        f"calibration tokens. It was no better there in {biased} of {len(fits)} blocks and experts: the bias stays."
    ]


def _one_domain(report: Record) -> list[str]:
    """Return a notice if all numbers of a known domain were measured on text of the calibration's domain."""
    if {domain_of(name, report.domains) for name in report.evaluation["pruned"]} - {""} != {
        "calibration"
    }:
        return []
    return [
        "Measured only on text like the calibration's; add an out-of-domain text to eval.perplexity.datasets."
    ]


def _left_out(report: Record) -> list[str]:
    """Return a notice of the documents that were read before, and are therefore not measured on."""
    if not report.left_out:
        return []
    numbers = [f"{number:,} of {task}" for task, number in report.left_out.items()]
    return [
        f"Documents left out, because the run has read them in its texts: {', '.join(numbers)}."
    ]


def _in_chat(report: Record) -> list[str]:
    names = ", ".join(task for task, origin in report.sources.items() if origin.endswith(TEMPLATED))
    return [f"Asked through the tokenizer's chat template: {names}."] if names else []


def _unanswered(report: Record) -> list[str]:
    """Return a notice of the tasks of which the dense model answers nothing: at most two standard errors above 0."""
    dense = report.evaluation["dense"]
    answered = dict[str, bool]()
    for name, value in dense.items():
        if "/exact_match" in name and not name.endswith("_stderr") and name not in report.averages:
            task = name.partition("/")[0]  # which may have several filters, as gsm8k
            answered[task] = answered.get(task, False) or value > 2 * dense.get(f"{name}_stderr", 0)
    names = ", ".join(task for task, any_right in answered.items() if not any_right)
    return (
        [f"The dense model answers nothing of {names}, which tells nothing at this size."]
        if names
        else []
    )
