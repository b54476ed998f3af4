"""Carries records of `logging` to the supervisor, whole. The user's own handlers stay as they are."""

from __future__ import annotations

import json
import logging
import sys

from rebeam import _rebeam

_formatter = logging.Formatter()

_COMMON = frozenset(vars(logging.makeLogRecord({})))
"""What every record has."""


class SupervisorHandler(logging.Handler):
    """Sends every record to the supervisor, which prints it with the actor's name."""

    def emit(self, record: logging.LogRecord) -> None:
        if not _rebeam.is_attached():
            # A process that this actor forked, or no actor yet: what it writes is read as output.
            print(self.format(record), file=sys.stderr)
            return
        try:
            exception = _formatter.formatException(record.exc_info) if record.exc_info else None
            exception = _valid(exception) if exception is not None else None
            message, extra = _valid(record.getMessage()), _extra(record)
            _rebeam.log(
                time=record.created,
                level=record.levelno,
                logger=record.name,
                message=message,
                exception=exception,
                extra=extra,
            )
        except Exception:
            self.handleError(record)


_FORMATTED = ("message", "asctime")
"""What a formatter adds."""


def _extra(record: logging.LogRecord) -> str | None:
    """What the record was given by `extra=`, as JSON; what JSON does not know is shown by its `repr`."""
    if len(vars(record)) <= len(_COMMON):
        return None
    extra = {name: value for name, value in vars(record).items() if name not in _COMMON and name not in _FORMATTED}
    if not extra:
        return None
    try:
        return _valid(json.dumps(extra, default=repr, allow_nan=False, ensure_ascii=False))
    except Exception:
        # One of them is nothing for JSON: then all are shown by their `repr`, and the record is not lost for it.
        return json.dumps({_valid(str(name)): _shown(value) for name, value in extra.items()})


def _shown(value: object) -> str:
    try:
        return _valid(repr(value))
    except Exception as error:
        return f"<{type(value).__qualname__}, whose repr raises {type(error).__qualname__}>"


def _valid(text: str) -> str:
    """Text that is valid Unicode: of a file's name, for instance, lone surrogates are shown as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def set_level(level: int) -> None:
    """Has the root logger let through records from this level on."""
    logging.getLogger().setLevel(level)


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
