"""Escape texts for Markdown.

Names of models, data sets and folders may contain characters that are special in Markdown or HTML.
"""

import html
import re

# Characters that are special in Markdown: punctuation, underscores at the border of a word, and the
# beginnings of headings and lists.
MEANINGFUL = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^[#+-](?= )|^\d+(?=[.)] ))")


def escaped(text: str) -> str:
    """Join a text into one line, and escape it so that Markdown shows every character as it is."""
    line = html.escape(" ".join(text.split()), quote=False)
    return MEANINGFUL.sub(r"\\\1", line)


def code_span(text: str) -> str:
    """Format a text as inline code on one line."""
    line = " ".join(text.split())
    if "`" in line:
        # spaces separate the text from the enclosing backticks; Markdown removes these spaces
        line = f" {line} "
    ticks = _ticks(line, 1)
    return ticks + line + ticks


def code_block(text: str, language: str = "") -> str:
    """Format lines of code as a code block."""
    fence = _ticks(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _ticks(code: str, least: int) -> str:
    """Return a sequence of backticks that can enclose the code.

    The sequence has at least `least` backticks, and more than any sequence of backticks inside the
    code.
    """
    runs = re.findall("`+", code)
    longest = max(map(len, runs), default=0)
    return "`" * max(least, longest + 1)
