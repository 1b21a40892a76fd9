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
        # If the arguments do not fit the message, do nothing here: the handlers of `logging` report
        # the mistake.
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
    """Remove the secrets of a composed config from `sys.argv`, and from the output from now on.

    `sys.argv` is changed because trackers record it. At this point, Hydra has already read it.

    env_set: the environment variables of `hydra.job.env_set`.
    """
    learn_from_config(config, env_set)
    sys.argv[1:] = redacted(sys.argv[1:])
