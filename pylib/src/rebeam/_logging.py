"""Carries records of `logging` to the supervisor, whole. The user's own handlers stay as they are."""

from __future__ import annotations

import logging
import sys

from rebeam import _rebeam

_formatter = logging.Formatter()


class SupervisorHandler(logging.Handler):
    """Sends every record to the supervisor, which prints it with the actor's name."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _rebeam.is_attached():
            # A process that this actor forked, or no actor yet: what it writes is read as output.
            print(self.format(record), file=sys.stderr)
            return
        try:
            exception = _formatter.formatException(record.exc_info) if record.exc_info else None
            _rebeam.log(record.created, record.levelno, record.name, record.getMessage(), exception)
        except Exception:
            self.handleError(record)


def install() -> None:
    """Adds the handler to the root logger, whose level becomes INFO if nobody has chosen one. Once: in the zygote, when
    the application was imported, or in the worker."""
    root = logging.getLogger()
    if any(isinstance(handler, SupervisorHandler) for handler in root.handlers):
        return
    root.addHandler(SupervisorHandler())
    if root.level == logging.WARNING:
        root.setLevel(logging.INFO)


def warn_bad_cast(text: str, sender: str) -> None:
    """A cast that fits no method: nobody waits for the error, so it is logged."""
    logging.getLogger("rebeam").warning("a cast from %s was not understood: %s", sender, text)
