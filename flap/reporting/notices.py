"""What report.md says in sentences."""

from statistics import median

from flap.reporting.numbers import domain_of
from flap.reporting.report import Report


def notices(report: Report) -> list[str]:
    """One paragraph each: warnings, on which text was measured, and what compensation did."""
    warnings = [f"Warning: {warning}" for warning in report.warnings]
    return [*warnings, *_one_domain(report), *_search(report), *_repairs(report), *_corrections(report)]


def _search(report: Report) -> list[str]:
    """A sentence on what moving budget around the plan brought, where structure=search was chosen."""
    if not report.search_nats:
        return []
    first, last = report.search_nats[0], report.search_nats[-1]
    return [
        f"The search's first plan diverges from the dense model by {first:.4f} nats a token of its windows, "
        f"its last one by {last:.4f}."
    ]


def _repairs(report: Report) -> list[str]:
    """Two sentences on linear compensation, where it was chosen: what it saves, and which blocks fell back."""
    if not report.repairs:
        return []
    left = median(one["held_out_error"] / (one["held_out_error_of_bias"] or 1) for one in report.repairs.values())
    stayed = ", ".join(block for block, one in report.repairs.items() if one["ridge"] is None) or "no block"
    return [
        f"Linear compensation leaves {left:.1%} (median over blocks) of the error that the bias leaves on held-out "
        f"calibration tokens. It was no better there in {stayed}: the bias stays."
    ]


def _corrections(report: Report) -> list[str]:
    """A sentence on what the second pass did, where there was one."""
    if not report.corrections:
        return []
    corrections = report.corrections.values()
    left = median(one["held_out_error"] / (one["held_out_error_before"] or 1) for one in corrections)
    mapped = sum(one["ridge"] is not None for one in corrections)
    stayed = sum(one["held_out_error"] == one["held_out_error_before"] for one in corrections)
    return [
        f"Correction behind pruned layers leaves {left:.1%} (median over blocks) of the error that was there on "
        f"held-out calibration tokens: of {len(corrections)} blocks, {mapped} got another map, "
        f"{len(corrections) - mapped - stayed} another bias, {stayed} stay as they were."
    ]


def _one_domain(report: Report) -> list[str]:
    """A notice where no number tells whether the pruned model fits more than the calibration text."""
    if {domain_of(name, report.domains) for name in report.evaluation["pruned"]} - {""} != {"calibration"}:
        return []
    return ["Measured only on text like the calibration's; add an out-of-domain text to eval.perplexity.datasets."]
