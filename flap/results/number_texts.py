"""Measured numbers as text: their digits, their errors, and how two models' numbers differ.

Numbers have names such as "wikitext2/perplexity@128" and "piqa/acc_stderr".
"""

import math
from collections.abc import Iterable, Mapping

from flap.evaluation.base import Numbers
from flap.evaluation.errors import SIGNIFICANCE

SMALL = ("/kl@", "/bits_per_byte@", "margin")  # numbers in nats or bits, which need more digits


def is_perplexity(name: str) -> bool:
    """Return whether a number is a perplexity (lower is better)."""
    return "/perplexity@" in name


def is_bits_per_byte(name: str) -> bool:
    """Return whether a number is the bits that a byte of text costs (lower is better)."""
    return "/bits_per_byte@" in name


def is_of_text(name: str) -> bool:
    """Return whether a number is a perplexity or bits per byte.

    Such numbers differ much between texts, and lower values are better.
    """
    return is_perplexity(name) or is_bits_per_byte(name)


def is_efficiency(name: str) -> bool:
    """Return whether a number is a speed, size or memory; others measure the model's quality."""
    return name.startswith("efficiency/")


def domain_of(name: str, domains: Mapping[str, str]) -> str:
    """Return the domain of a number's text, "calibration" or "other"; empty if it is unknown.

    domains: the domain of each task by its name: "boolq", or "c4/perplexity@128" for a text and
        what is measured on it.
    """
    text = name.rpartition("/")[0]
    if not text:
        return ""
    for task, domain in domains.items():
        if text in (task, task.rpartition("/")[0]):
            return domain
    return ""


def in_order(names: Iterable[str], domains: Mapping[str, str]) -> list[str]:
    """Return the names sorted: perplexities first, then bits per byte, then all others.

    Perplexities and bits per byte are sorted by window length, and by domain: texts of the
    calibration's domain come before other texts.
    """

    def key(name: str) -> tuple[int, int, bool]:
        if not is_of_text(name):
            return 2, 0, False
        window = int(name.rpartition("@")[2])
        return int(is_bits_per_byte(name)), window, domain_of(name, domains) != "calibration"

    return sorted(names, key=key)


def _decimals(name: str) -> int:
    return 4 if any(part in name for part in SMALL) else 3


def with_error(numbers: Numbers, name: str) -> str:
    """Return a number with its standard error, if there is one: "0.650 ± 0.062".

    The text is empty if the number was not measured.
    """
    value = numbers.get(name)
    if value is None:
        return ""
    decimals = _decimals(name)
    text = f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.{decimals}f}"

    error = numbers.get(f"{name}_stderr")
    return text if error is None else f"{text} ± {error:.{decimals}f}"


def short(value: float) -> str:
    """Return a number with few digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1e12:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.2f}"
    return f"{value:.4g}"


def change(
    name: str,
    first: Numbers,
    second: Numbers,
    error: float | None = None,
    p_value: float | None = None,
) -> str:
    """Return the difference second - first with its standard error, such as "-0.017 ± 0.044".

    Perplexities and bits per byte also get the relative difference, because texts differ. A
    difference within the noise says so. The text is empty for efficiency, and if a number is
    missing or infinite.
    """
    before = first.get(name)
    after = second.get(name)
    if before is None or after is None or is_efficiency(name) or not math.isfinite(after - before):
        return ""

    decimals = 2 if is_perplexity(name) else _decimals(name)
    text = f"{after - before:+,.{decimals}f}"
    if error is not None:
        text += f" ± {error:,.{decimals}f}"
    if is_of_text(name):
        text += f" ({after / before - 1:+,.1%})"
    if p_value is not None and p_value >= SIGNIFICANCE:
        text += " within noise"
    return text


def relative(before: float | None, after: float | None) -> str:
    """Return how much a number has grown: "+12.5%", or "3.1 times" if it has at least doubled."""
    if not before or after is None:
        return ""
    return f"{after / before:,.1f} times" if after >= 2 * before else f"{after / before - 1:+.1%}"
