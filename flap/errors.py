"""How an error of a library becomes part of a line for people."""


def one_line(error: Exception, most: int | None = None) -> str:
    """What an error says, on one line and in at most so many characters; None: in full."""
    return " ".join(str(error).split())[:most]
