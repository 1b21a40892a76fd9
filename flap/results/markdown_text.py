"""Texts in Markdown.

Names of models, texts and folders may hold characters to which Markdown or HTML give a meaning.
"""

import re

MEANINGFUL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^[#+-](?= )|^\d+(?=[.)] )")
IN_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is, also in the cell of a table."""
    line = " ".join(text.split())
    for character, entity in IN_HTML.items():
        line = line.replace(character, entity)
    return MEANINGFUL.sub(lambda match: f"\\{match[0]}", line)


def code_span(text: str) -> str:
    """Return a text on one line as code in a sentence."""
    line = " ".join(text.split())
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if len(ticks) > 1 else ""  # separates the text's own backticks; Markdown drops it
    return f"{ticks}{space}{line}{space}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """Return lines of code as a block."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
