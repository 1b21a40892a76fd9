"""flap parses the names of results, such as piqa/acc, and formats comparisons of two models."""

import math

import pytest

from flap.results.number_texts import change, domain_of, in_order

DOMAINS = {
    "a/perplexity@128": "other",
    "b/divergence@128": "calibration",
    "boolq": "calibration",
    "piqa": "other",
}


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("a/perplexity@128", "other"),
        ("b/kl@128", "calibration"),
        ("b/kl@128_stderr", "calibration"),
        ("c/perplexity@128", ""),
        ("removed", ""),
        ("boolq/acc", "calibration"),
        ("boolq/acc_stderr", "calibration"),
        ("piqa/acc_norm,none", "other"),
        ("zero_shot/average", ""),
        ("efficiency/latency_ms", ""),
    ],
)
def test_domain_of_a_number(name: str, domain: str) -> None:
    assert domain_of(name, DOMAINS) == domain


def test_texts_stand_side_by_side_by_window_the_calibrations_first() -> None:
    names = [f"{text}/perplexity@{window}" for text in "abc" for window in (1024, 128)]
    domains = {name: "calibration" if name.startswith("b") else "other" for name in names}
    expected = [f"{text}/perplexity@{window}" for window in (128, 1024) for text in "bac"]
    assert in_order(["piqa/acc", *names, "boolq/acc"], domains) == [
        *expected,
        "piqa/acc",
        "boolq/acc",
    ]
    assert in_order(names[:2], {}) == names[1::-1]
    bits = ["a/bits_per_byte@128", "a/bits_per_byte@1024"]
    assert in_order(["piqa/acc", *reversed(bits), *names], {})[len(names) :] == [*bits, "piqa/acc"]


@pytest.mark.parametrize(
    ("name", "dense", "pruned", "text"),
    [
        ("a/perplexity@128", 20.0, 25.0, "+5.00 (+25.0%)"),
        ("a/perplexity@128", 20.0, 19.9, "-0.10 (-0.5%)"),
        ("a/perplexity@128", 20.0, 20020.0, "+20,000.00 (+100,000.0%)"),
        ("a/perplexity@128", 20.0, math.inf, ""),
        ("a/perplexity@128", math.inf, math.inf, ""),
        ("a/perplexity@128", None, 25.0, ""),
        ("a/bits_per_byte@128", 1.0, 1.0123, "+0.0123 (+1.2%)"),
        ("piqa/acc", 0.7, 0.65, "-0.050"),
        ("efficiency/latency_ms", 2.0, 1.0, "-50.0%"),
    ],
)
def test_change(name: str, dense: float | None, pruned: float, text: str) -> None:
    assert change(name, {} if dense is None else {name: dense}, {name: pruned}) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a/perplexity@128", "+0.25 ± 0.12 (+25.0%)"),
        ("piqa/acc", "+0.250 ± 0.123"),
        ("piqa/margin", "+0.2500 ± 0.1230"),
        ("zero_shot/average_margin", "+0.2500 ± 0.1230"),
    ],
)
def test_change_with_its_error(name: str, text: str) -> None:
    models = {name: 1.0}, {name: 1.25}
    assert change(name, *models, 0.123) == change(name, *models, 0.123, 0.049) == text
    assert change(name, *models, 0.125, 0.05).endswith(" within noise")
    # Here, the change is more than twice its standard error, but its p-value is large. This can
    # happen with few documents.
    assert change(name, *models, 0.123, 0.098) == f"{text}, p = 0.10"
