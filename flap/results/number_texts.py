"""Format measured numbers, their standard errors, and the difference between two numbers.

A number is a measured result, such as a perplexity or an accuracy. Numbers have names such as
"wikitext2/perplexity@128", where 128 is the window length in tokens. The standard error of
"piqa/acc" has the name "piqa/acc_stderr".
"""

import math
from collections.abc import Iterable, Mapping
from itertools import filterfalse

from flap.evaluation.base import Numbers
from flap.evaluation.errors import SIGNIFICANCE

# The domain of each evaluation task. The keys are the names of tasks. The value is "calibration" if
# the run has used the data set or documents of the task for calibration, for training or to choose
# the vocabulary. Otherwise, the value is "other".
Domains = Mapping[str, str]
# a number whose name contains one of these texts is shown with 4 decimals instead of 3
SMALL = ("/kl@", "/bits_per_byte@", "margin")


def is_perplexity(name: str) -> bool:
    """Return whether a number is a perplexity (lower is better)."""
    return "/perplexity@" in name


def is_bits_per_byte(name: str) -> bool:
    """Return whether a number is in bits per byte of text (lower is better)."""
    return "/bits_per_byte@" in name


def is_of_text(name: str) -> bool:
    """Return whether a number is a perplexity or bits per byte.

    For both, lower values are better, and the values for two different texts cannot be compared.
    """
    return is_perplexity(name) or is_bits_per_byte(name)


def is_efficiency(name: str) -> bool:
    """Return whether a number is a speed, a size or an amount of memory, not a quality."""
    return name.startswith("efficiency/")


def domain_of(name: str, domains: Domains) -> str:
    """Return the domain of the text on which a number is measured; "" if the domain is unknown.

    The name of a number begins with its task, such as "boolq", or with a text, such as "c4" in
    "c4/perplexity@128".
    """
    text = name.rpartition("/")[0]
    for task, domain in domains.items():
        if text and text in (task, task.rpartition("/")[0]):
            return domain
    return ""


def in_order(names: Iterable[str], domains: Domains) -> list[str]:
    """Sort the names of numbers into the order in which tables show them.

    The names of standard errors are left out. Perplexities come first, then bits per byte, then all
    other numbers, with the numbers of the evaluation `efficiency` at the end. Perplexities and bits
    per byte are sorted by window length. Among numbers with the same window length, numbers on
    texts with the domain "calibration" come first. The run has also used these texts for another
    purpose, such as calibration.
    """

    def by_window(name: str) -> tuple[bool, int, bool]:
        window = int(name.rpartition("@")[2])
        return is_bits_per_byte(name), window, domain_of(name, domains) != "calibration"

    measured = dict.fromkeys(name for name in names if not name.endswith("_stderr"))
    of_text = sorted(filter(is_of_text, measured), key=by_window)
    return of_text + sorted(filterfalse(is_of_text, measured), key=is_efficiency)


def _decimals(name: str) -> int:
    return 4 if any(part in name for part in SMALL) else 3


def with_error(numbers: Numbers, name: str) -> str:
    """Format a number, with its standard error if the error is known: "0.650 ± 0.062".

    Return an empty string if the number was not measured.
    """
    value = numbers.get(name)
    if value is None:
        return ""
    whole = isinstance(value, int) or abs(value) >= 1e6
    decimals = 0 if whole else _decimals(name)
    text = f"{value:,.{decimals}f}"
    error = numbers.get(f"{name}_stderr")
    return text if error is None else f"{text} ± {error:.{decimals}f}"


def short(value: float) -> str:
    """Format a number with few digits, such as "0.1234", "12.30" or "1,234"."""
    if isinstance(value, int):
        return f"{value:,}"
    for limit, digits in ((1e12, ".2e"), (1000, ",.0f"), (10, ".2f")):
        if abs(value) >= limit:
            return f"{value:{digits}}"
    return f"{value:.4g}"


def change(
    name: str,
    first: Numbers,
    second: Numbers,
    error: float | None = None,
    p_value: float | None = None,
) -> str:
    """Format the difference of a number between two models, `second` minus `first`.

    An example is "-0.017 ± 0.044 within noise", where "within noise" means that the difference is
    not significant. With few documents, a difference may be more than twice its standard error and
    still not significant. In this case, the result has the p-value instead of "within noise".

    For a perplexity or bits per byte, the result also has the relative difference, because absolute
    differences cannot be compared between texts. For a number of the evaluation `efficiency`, the
    result has only the relative difference. The result is empty if one of the two numbers is
    missing or infinite.

    name: the name of the number.
    first, second: all numbers of the first model, and all numbers of the second model.
    error, p_value: the standard error and the p-value of the difference, if they are known.
    """
    before = first.get(name, math.nan)
    after = second.get(name, math.nan)
    if not math.isfinite(after - before):
        return ""
    relative = f"{after / before - 1:+,.1%}" if before else ""
    if is_efficiency(name):
        return relative

    decimals = 2 if is_perplexity(name) else _decimals(name)
    text = f"{after - before:+,.{decimals}f}"
    if error is not None:
        text += f" ± {error:,.{decimals}f}"
    if is_of_text(name):
        text += f" ({relative})"
    if p_value is not None and p_value >= SIGNIFICANCE:
        large = error is not None and abs(after - before) > 2 * error
        text += f", p = {p_value:.2f}" if large else " within noise"
    return text
