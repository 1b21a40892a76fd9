"""Names of measured numbers: "wikitext2/perplexity@128", "piqa/acc_stderr", "efficiency/latency_ms"."""

import math
from collections.abc import Iterable, Mapping


def is_perplexity(name: str) -> bool:
    """Return whether a number is a perplexity (lower is better)."""
    return "/perplexity@" in name


def is_efficiency(name: str) -> bool:
    """Return whether a number is of speed, size or memory; all others measure the model's quality."""
    return name.startswith("efficiency/")


def domain_of(name: str, domains: Mapping[str, str]) -> str:
    """Return the domain of a number's text, "calibration" or "other"; empty if it is unknown.

    domains: the domain of each task, by its name.
    """
    return domains.get(name) or domains.get(name.rpartition("/")[0], "")


def side_by_side(names: Iterable[str], domains: Mapping[str, str]) -> list[str]:
    """Return the names sorted: perplexities first, by window length, the calibration's domain before others."""

    def place(name: str) -> tuple[bool, int, bool]:
        if not is_perplexity(name):
            return True, 0, False
        return False, int(name.rpartition("@")[2]), domain_of(name, domains) != "calibration"

    return sorted(names, key=place)


def change(name: str, dense: float | None, pruned: float | None) -> str:
    """Return pruned - dense as text; of a perplexity also relative to dense, because some texts are harder than others.

    Empty for efficiency, standard errors, and missing or infinite numbers.
    """
    if dense is None or pruned is None or is_efficiency(name) or name.endswith("_stderr"):
        return ""
    if not math.isfinite(pruned - dense):
        return ""
    return f"{pruned - dense:+,.2f} ({pruned / dense - 1:+,.1%})" if is_perplexity(name) else f"{pruned - dense:+,.3f}"
