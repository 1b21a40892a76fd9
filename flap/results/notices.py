"""The notices of a run: sentences in report.md that help to interpret the measured numbers.

A number is a measured result, such as a perplexity or an accuracy.
"""

from collections.abc import Iterator
from statistics import median

from flap.evaluation.base import TEMPLATED
from flap.results.number_texts import domain_of, in_order, is_bits_per_byte, is_perplexity
from flap.results.record import Record

# If pruning multiplies a perplexity by more than this factor, a notice advises how to lose less
# quality.
DESTROYED = 3.0
# The corresponding limit for bits per byte, for a dense model with a perplexity of 23: if this
# perplexity triples, the bits per byte grow by the factor log 69 / log 23 = 1.35.
DESTROYED_BITS = 1.35

TWO_TOKENIZERS = (
    "The pruned model has a smaller tokenizer than the dense one, so their perplexities do not "
    "compare. Bits per byte do."
)
LITTLE_LEFT = (
    "{name} is {times:,.1f} times the dense model's: little of the model is left. "
    "To lose less, use a lower ratio, {preset}or prompts of your application (calibration=answers)."
)
ONE_DOMAIN = (
    "Measured only on text like the calibration's; "
    "add an out-of-domain text to eval.perplexity.datasets."
)
LEFT_OUT = "Documents left out, because the run has read them in its texts: {}."
IN_CHAT = "Asked through the tokenizer's chat template: {}."
UNANSWERED = "The dense model answers nothing of {}, so these tasks say nothing about pruning it."
OWN_TEXT = (
    "The model wrote {tokens:,} tokens of its {use} text itself, from {begins_with}, "
    "in {seconds:.0f} seconds; "
    "{dropped} sequences were dropped as loops, too short or too long{end}."
)
CUT = ", {cut} answers end at calibration.max_new_tokens"
COMPENSATION = (
    "Linear compensation leaves {left:.1%} (median over blocks) of the error that the bias leaves "
    "on held-out calibration tokens. "
    "It was no better there in {biased} of {count} blocks and experts: the bias stays."
)
RECOVERY = (
    "Trained after compression (recover={choice}) on {tokens:,} tokens: the divergence from the "
    "dense model on held-out windows went from {nats_before:.4f} to {nats_after:.4f} nats a token."
    "{early} These numbers are not training-free."
)
EARLY = (
    " It ended early, because it no longer improved; its state after {best_after_tokens:,} is kept."
)


def notices(report: Record) -> list[str]:
    """Return all notices of a run.

    The warnings of the run come first, then sentences about its measured numbers and its method.
    """
    warnings = [f"Warning: {warning}" for warning in report.warnings]
    return [*warnings, *remarks(report), *_on_tasks(report), *_on_the_method(report)]


def remarks(report: Record) -> list[str]:
    """Return the notices that are also printed on the console."""
    sentences = []
    if report.vocabulary and any(map(is_perplexity, report.evaluation["dense"])):
        sentences.append(TWO_TOKENIZERS)
    name, times = _most_lost(report)
    if times > (DESTROYED_BITS if report.vocabulary else DESTROYED):
        preset = "" if report.config["method"] == "flap_plus" else "method=flap_plus, "
        sentences.append(LITTLE_LEFT.format(name=name, times=times, preset=preset))
    domains = {domain_of(name, report.domains) for name in report.evaluation["pruned"]}
    if domains - {""} == {"calibration"}:
        sentences.append(ONE_DOMAIN)
    if report.left_out:
        sentences.append(LEFT_OUT.format(left_out(report)))
    return sentences


def left_out(report: Record) -> str:
    """Return how many documents were left out of each evaluation task: "3 of sciq, 1 of boolq"."""
    return ", ".join(f"{number:,} of {task}" for task, number in report.left_out.items())


def _most_lost(report: Record) -> tuple[str, float]:
    """Return the perplexity that pruning increased by the largest factor, and this factor.

    If the vocabulary was trimmed, bits per byte are compared instead of perplexities.
    """
    is_compared = is_bits_per_byte if report.vocabulary else is_perplexity
    before = report.evaluation["dense"]
    most = ("", 0.0)
    for name, value in report.evaluation["pruned"].items():
        if is_compared(name) and before.get(name):
            most = max(most, (name, value / before[name]), key=lambda pair: pair[1])
    return most


def _on_tasks(report: Record) -> Iterator[str]:
    in_chat = [task for task, origin in report.sources.items() if origin.endswith(TEMPLATED)]
    if in_chat:
        yield IN_CHAT.format(", ".join(in_chat))

    # Some tasks of lm-eval, such as gsm8k, have several filters, which are rules that extract the
    # answer from the generated text. Such a task has one number for each filter.
    dense = report.evaluation["dense"]
    answered: dict[str, bool] = {}
    for name in in_order(dense, {}):
        task, _, measure = name.partition("/")
        if measure.startswith("exact_match") and name not in report.averages:
            above_noise = dense[name] > 2 * dense.get(f"{name}_stderr", 0)
            answered[task] = answered.get(task, False) or above_noise
    unanswered = [task for task, any_right in answered.items() if not any_right]
    if unanswered:
        yield UNANSWERED.format(", ".join(unanswered))


def _on_the_method(report: Record) -> Iterator[str]:
    trained = report.recovery
    for use, generated in (report.own_text | trained.get("own_text", {})).items():
        end = CUT.format(**generated) if generated.get("cut") else ""
        yield OWN_TEXT.format(use=use, end=end, **generated)

    # The errors in `repairs` were measured on held-out calibration tokens. If none of these tokens
    # was routed to an expert, both errors of this expert are 0. Such an expert is left out, because
    # 0 / 0 is not defined.
    fits = [fit for fit in report.repairs.values() if fit["held_out_error_of_bias"]]
    if fits:
        left = median(fit["held_out_error"] / fit["held_out_error_of_bias"] for fit in fits)
        biased = sum(fit["ridge"] is None for fit in fits)
        yield COMPENSATION.format(left=left, biased=biased, count=len(fits))

    if trained:
        early = EARLY.format(**trained) if trained["stopped_early"] else ""
        yield RECOVERY.format(early=early, **trained)
