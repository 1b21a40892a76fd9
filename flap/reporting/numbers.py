"""What the name of a measured number says: "wikitext2/perplexity@128", "piqa/acc_stderr", "efficiency/latency_ms"."""

import math
from collections.abc import Iterable, Mapping


def is_perplexity(name: str) -> bool:
    return "/perplexity@" in name


def is_efficiency(name: str) -> bool:
    """Speed and size; the other measured numbers say how good the model is."""
    return name.startswith("efficiency/")


def domain_of(name: str, domains: Mapping[str, str]) -> str:
    """Whether the number's task is of the "calibration" text's domain or "other"; empty where nothing says."""
    return domains.get(name) or domains.get(name.rpartition("/")[0], "")


def side_by_side(names: Iterable[str], domains: Mapping[str, str]) -> list[str]:
    """Perplexities first: those of one window beside each other, that of the calibration's domain before others."""

    def place(name: str) -> tuple[bool, int, bool]:
        if not is_perplexity(name):
            return True, 0, False
        return False, int(name.rpartition("@")[2]), domain_of(name, domains) != "calibration"

    return sorted(names, key=place)


def change(name: str, dense: float | None, pruned: float | None) -> str:
    """pruned - dense; of a perplexity with its share of dense, too, because texts differ in how hard they are."""
    if dense is None or pruned is None or is_efficiency(name) or name.endswith("_stderr"):
        return ""
    if not math.isfinite(pruned - dense):
        return ""
    return f"{pruned - dense:+,.2f} ({pruned / dense - 1:+,.1%})" if is_perplexity(name) else f"{pruned - dense:+,.3f}"
