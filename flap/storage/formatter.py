"""The format of log records on the console."""

import logging


class ConsoleFormatter(logging.Formatter):
    """A formatter that prints one line for each record; tracebacks go only to the log file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, after its level if that is a warning or worse."""
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{prefix}{record.getMessage()}"
