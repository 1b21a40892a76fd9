"""Remove secrets from the log, the printed output and `sys.argv` of a process."""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO, cast

from omegaconf import DictConfig

from flap.config.secrets import learn_from_config, learn_from_process, redact, redacted


class RedactedStream:
    """A text stream, such as the console, that removes secrets from each text before writing it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self._stream.writelines(redact(line) for line in lines)

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
