"""Measured numbers as text: names as "wikitext2/perplexity@128" and "piqa/acc_stderr", digits, signed differences."""

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
    """Return whether a number is a perplexity or bits per byte: it differs with the text, and lower is better."""
    return is_perplexity(name) or is_bits_per_byte(name)


def is_efficiency(name: str) -> bool:
    """Return whether a number is of speed, size or memory; all others measure the model's quality."""
    return name.startswith("efficiency/")


def domain_of(name: str, domains: Mapping[str, str]) -> str:
    """Return the domain of a number's text, "calibration" or "other"; empty if it is unknown.

    domains: the domain of each task, by its name: "boolq", or the text and what is measured, "c4/perplexity@128".
    """
    text = name.rpartition("/")[0]
    matching = (
        domain for task, domain in domains.items() if text in (task, task.rpartition("/")[0])
    )
    return next(matching, "") if text else ""


def in_order(names: Iterable[str], domains: Mapping[str, str]) -> list[str]:
    """Return the names sorted: perplexities, bits per byte, others.

    The first two by window length, the calibration's domain before others.
    """

    def place(name: str) -> tuple[int, int, bool]:
        if not is_of_text(name):
            return 2, 0, False
        return (
            int(is_bits_per_byte(name)),
            int(name.rpartition("@")[2]),
            domain_of(name, domains) != "calibration",
        )

    return sorted(names, key=place)


def _decimals(name: str) -> int:
    return 4 if any(part in name for part in SMALL) else 3


def with_error(numbers: Numbers, name: str) -> str:
    """Return a number with its standard error, if it has one: "0.650 ± 0.062"; empty if it was not measured."""
    places = _decimals(name)
    value = numbers.get(name)
    error = numbers.get(f"{name}_stderr")
    if value is None:
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:,.{places}f}"
    return shown if error is None else f"{shown} ± {error:.{places}f}"


def short(value: float) -> str:
    """Return a number with few digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1e12:
        return f"{value:.2e}"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.2f}"
        if abs(value) >= 10
        else f"{value:.4g}"
    )


def change(
    name: str,
    first: Numbers,
    second: Numbers,
    error: float | None = None,
    p_value: float | None = None,
) -> str:
    """Return second - first ± its standard error; of perplexity and bits per byte also relative, as texts differ.

    Says where the difference is within the noise. Empty for efficiency, and for missing or infinite numbers.
    """
    before = first.get(name)
    after = second.get(name)
    if before is None or after is None or is_efficiency(name) or not math.isfinite(after - before):
        return ""
    places = 2 if is_perplexity(name) else _decimals(name)
    with_its = "" if error is None else f" ± {error:,.{places}f}"
    relative = f" ({after / before - 1:+,.1%})" if is_of_text(name) else ""
    noise = " within noise" if p_value is not None and p_value >= SIGNIFICANCE else ""
    return f"{after - before:+,.{places}f}{with_its}{relative}{noise}"


def relative(before: float | None, after: float | None) -> str:
    """Return how much larger a number has become: "+12.5%", or from twice as large on "3.1 times"."""
    if not before or after is None:
        return ""
    return f"{after / before:,.1f} times" if after >= 2 * before else f"{after / before - 1:+.1%}"
