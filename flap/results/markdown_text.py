"""Texts in Markdown.

Names of models, texts and folders may hold characters to which Markdown or HTML give a meaning.
"""

import html
import re

# Punctuation; underscores at the border of a word; the beginnings of headings and lists.
MEANINGFUL = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^[#+-](?= )|^\d+(?=[.)] ))")


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is, also in the cell of a table."""
    line = html.escape(" ".join(text.split()), quote=False)
    return MEANINGFUL.sub(r"\\\1", line)


def code_span(text: str) -> str:
    """Return a text on one line as code in a sentence."""
    line = " ".join(text.split())
    if "`" in line:
        line = f" {line} "  # the spaces separate its backticks; Markdown drops them
    ticks = _ticks(line, 1)
    return ticks + line + ticks


def code_block(text: str, language: str = "") -> str:
    """Return lines of code as a block."""
    fence = _ticks(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _ticks(code: str, least: int) -> str:
    """Return enough backticks to enclose code that may itself contain backticks."""
    runs = re.findall("`+", code)
    longest = max(map(len, runs), default=0)
    return "`" * max(least, longest + 1)
