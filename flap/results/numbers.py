"""Names of measured numbers: "wikitext2/perplexity@128", "piqa/acc_stderr", "efficiency/latency_ms"."""

import math
from collections.abc import Iterable, Mapping

from flap.evaluation.errors import SIGNIFICANCE


def is_perplexity(name: str) -> bool:
    """Return whether a number is a perplexity (lower is better)."""
    return "/perplexity@" in name


def is_efficiency(name: str) -> bool:
    """Return whether a number is of speed, size or memory; all others measure the model's quality."""
    return name.startswith("efficiency/")


def decimals(name: str) -> int:
    """Return how many decimals of a number people are shown: more of those in nats, which are small."""
    return 4 if "/kl@" in name or "margin" in name else 3


def domain_of(name: str, domains: Mapping[str, str]) -> str:
    """Return the domain of a number's text, "calibration" or "other"; empty if it is unknown.

    domains: the domain of each task, by its name: "boolq", or the text and what is measured, "c4/perplexity@128".
    """
    text = name.rpartition("/")[0]
    found = (domain for task, domain in domains.items() if text in (task, task.rpartition("/")[0]))
    return next(found, "") if text else ""


def side_by_side(names: Iterable[str], domains: Mapping[str, str]) -> list[str]:
    """Return the names sorted: perplexities first, by window length, the calibration's domain before others."""

    def place(name: str) -> tuple[bool, int, bool]:
        if not is_perplexity(name):
            return True, 0, False
        return False, int(name.rpartition("@")[2]), domain_of(name, domains) != "calibration"

    return sorted(names, key=place)


def change(
    name: str, dense: float | None, pruned: float | None, error: float | None, p_value: float | None = None
) -> str:
    """Return pruned - dense ± its standard error as text; of a perplexity also relative to dense, as texts differ.

    Says where the difference is within the noise. Empty for efficiency, and for missing or infinite numbers.
    """
    if dense is None or pruned is None or is_efficiency(name):
        return ""
    if not math.isfinite(pruned - dense):
        return ""
    places = 2 if is_perplexity(name) else decimals(name)
    beside = "" if error is None else f" ± {error:,.{places}f}"
    relative = f" ({pruned / dense - 1:+,.1%})" if is_perplexity(name) else ""
    noise = " within noise" if p_value is not None and p_value >= SIGNIFICANCE else ""
    return f"{pruned - dense:+,.{places}f}{beside}{relative}{noise}"
