"""The notices of a run, as sentences in report.md."""

from statistics import median

from flap.reporting.numbers import domain_of
from flap.reporting.report import Report

MOST_NAMES = 12  # of blocks in one sentence


def notices(report: Report) -> list[str]:
    """Return the notices, one paragraph each: warnings, domain of the texts, search, and linear compensation."""
    warnings = [f"Warning: {warning}" for warning in report.warnings]
    return [*warnings, *_one_domain(report), *_search(report), *_compensation(report)]


def _search(report: Report) -> list[str]:
    """Return a sentence on the divergence before and after the search, if structure=search was chosen."""
    if not report.search_nats:
        return []
    before, after = report.search_nats[0], report.search_nats[-1]
    return [
        f"The search's first plan diverges from the dense model by {before:.4f} nats a token of its windows, "
        f"its last one by {after:.4f}."
    ]


def _compensation(report: Report) -> list[str]:
    """Return two sentences on the fit reports of linear compensation: the error left, blocks that keep the bias."""
    if not report.repairs:
        return []
    ratio = median(fit["held_out_error"] / (fit["held_out_error_of_bias"] or 1) for fit in report.repairs.values())
    biased = [block for block, fit in report.repairs.items() if fit["ridge"] is None]
    blocks = ", ".join(biased) or "no block"
    if len(biased) > MOST_NAMES:
        blocks = f"{len(biased)} of {len(report.repairs)} blocks and experts ({', '.join(biased[:MOST_NAMES])}, ...)"
    return [
        f"Linear compensation leaves {ratio:.1%} (median over blocks) of the error that the bias leaves on held-out "
        f"calibration tokens. It was no better there in {blocks}: the bias stays."
    ]


def _one_domain(report: Report) -> list[str]:
    """Return a notice if all numbers of a known domain were measured on text of the calibration's domain."""
    if {domain_of(name, report.domains) for name in report.evaluation["pruned"]} - {""} != {"calibration"}:
        return []
    return ["Measured only on text like the calibration's; add an out-of-domain text to eval.perplexity.datasets."]
