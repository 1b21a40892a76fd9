"""Remove secrets from the log, the printed output and `sys.argv` of a process.

The printed output is discarded after its reader has ended.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from omegaconf import DictConfig

from flap.config.secrets import learn_from_config, learn_from_process, redact, redacted


class RedactedStream:
    """A text stream, such as the console, that removes secrets from each text before writing it.

    If the reader of the stream has ended, as `head` has in `python -m flap ratio=0.2 | head -1`,
    all further text is discarded. So a run ends as usual, and its results are not lost.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._while_it_is_read():
            self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._while_it_is_read():
            self._stream.flush()

    @contextmanager
    def _while_it_is_read(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # from here on, the file descriptor of the stream leads to the null device; so the text
            # that is still buffered can be flushed without another error when the process ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class RedactedRecord(logging.LogRecord):
    """A log record whose message and traceback contain no secrets, whatever handler writes it."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        # `getMessage` raises an error if the record's arguments do not fit the placeholders in its
        # message. Ignore this error, because the handlers of `logging` report it.
        with suppress(TypeError, ValueError, KeyError):
            message = self.getMessage()
            without = redact(message)
            if without != message:
                self.msg = without
                self.args = ()
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = redact(logging.Formatter().formatException(self.exc_info))


def protect_output() -> None:
    """Remove secrets from all that this process logs and prints from now on.

    A second call does no harm.
    """
    learn_from_process(sys.argv[1:])
    logging.setLogRecordFactory(RedactedRecord)
    if not isinstance(sys.stdout, RedactedStream):
        sys.stdout = cast(TextIO, RedactedStream(sys.stdout))
    if not isinstance(sys.stderr, RedactedStream):
        sys.stderr = cast(TextIO, RedactedStream(sys.stderr))


def protect_secrets_of(config: DictConfig, env_set: Any) -> None:
    """Remove secrets from `sys.argv`, and learn the secrets of a composed config.

    The learned secrets are removed from all that this process logs and prints from now on.
    `sys.argv` is changed because experiment trackers record the command line. Hydra has already
    parsed the command line before this call.

    env_set: the section `hydra.job.env_set` of the config, which maps environment variables to the
        values that Hydra sets.
    """
    learn_from_config(config, env_set)
    sys.argv[1:] = redacted(sys.argv[1:])
