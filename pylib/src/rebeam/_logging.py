"""Carries records of `logging` to the supervisor, whole. The user's own handlers stay as they are."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

from rebeam import _rebeam
from rebeam._failure import valid

_formatter = logging.Formatter()
_SURROGATE = re.compile("[\ud800-\udfff]")

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
            if record.stack_info:
                exception = "\n".join(filter(None, (exception, record.stack_info)))
            exception = valid(exception) if exception is not None else None
            message, extra = valid(record.getMessage()), _extra(record)
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
        # A lone surrogate is shown as an escape, whose backslash JSON has to escape.
        return _SURROGATE.sub(
            lambda found: f"\\\\u{ord(found[0]):04x}",
            json.dumps(extra, default=repr, allow_nan=False, ensure_ascii=False),
        )
    except Exception:
        # One of them is nothing for JSON: then all are shown by their `repr`, and the record is not lost for it.
        return json.dumps({valid(str(name)): _shown(value) for name, value in extra.items()})


def _shown(value: object) -> str:
    try:
        return valid(repr(value))
    except Exception as error:
        return f"<{type(value).__qualname__}, whose repr raises {type(error).__qualname__}>"


def set_level(level: int) -> None:
    """Has records through from this level on."""
    root = logging.getLogger()
    root.setLevel(level)
    for handler in root.handlers:
        if isinstance(handler, SupervisorHandler):
            handler.setLevel(logging.NOTSET)


def install(keeps_level: bool = False) -> None:
    """Adds the handler to the root logger, whose level becomes INFO if nobody has chosen one. Once: in the zygote, when
    the application was imported, or in the worker.

    It takes the place of handlers that write to stdout and stderr, which would show each record a second time.
    """
    root = logging.getLogger()
    if any(isinstance(handler, SupervisorHandler) for handler in root.handlers):
        return
    handler = SupervisorHandler()
    replaced = [other for other in root.handlers if _is_for_terminal(other)]
    for other in replaced:
        root.removeHandler(other)
    if replaced:
        handler.setLevel(min(other.level for other in replaced))
        # Of several, each may have filters for what the others show.
        for keep in replaced[0].filters if len(replaced) == 1 else ():
            handler.addFilter(keep)
    root.addHandler(handler)
    if root.level == logging.WARNING and not keeps_level:
        root.setLevel(logging.INFO)
    if logging.basicConfig is not _basic_config:
        _Original.basic_config = logging.basicConfig
        logging.basicConfig = _basic_config


class _Original:
    """What `logging` itself has."""

    basic_config: Any


def _basic_config(**options: Any) -> None:
    """`logging.basicConfig`, which would do nothing where the root logger has a handler: there it has ours."""
    root = logging.getLogger()
    own = [handler for handler in root.handlers if isinstance(handler, SupervisorHandler)]
    for handler in own:
        root.removeHandler(handler)
    try:
        _Original.basic_config(**options)
    finally:
        if own:
            install(keeps_level="level" in options)


def _is_for_terminal(handler: logging.Handler) -> bool:
    """Whether a handler writes to this process's stdout or stderr, as those of `basicConfig` and of `rich` do."""
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    return stream is not None and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


def warn_bad_cast(text: str, sender: str) -> None:
    """A cast that fits no method: nobody waits for the error, so it is logged."""
    logging.getLogger("rebeam").warning("a cast from %s was not understood: %s", sender, text)
