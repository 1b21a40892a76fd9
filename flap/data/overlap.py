"""The rule by which two texts overlap: they share 13 words in a row, or all words of the shorter one.

Source of the rule: Brown et al., NeurIPS 2020, arXiv 2005.14165, appendix C.
"""

from flap.data.text import ngrams

OVERLAP = 13  # words in a row that two texts share only if one quotes the other, or both a third


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of OVERLAP words of a text; of a shorter text, the run of all its words."""
    words = text.split()
    if not words:
        return set()
    if len(words) < OVERLAP:
        return {tuple(words)}
    return set(ngrams(words, OVERLAP))
