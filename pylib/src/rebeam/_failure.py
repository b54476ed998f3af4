"""From an exception to what can be said about it in another process."""

from __future__ import annotations

import contextlib
import os
import pickle
import traceback
from typing import TYPE_CHECKING, Any

from rebeam import _exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN_FILES = os.path.dirname(os.path.abspath(__file__)) + os.sep
_IMPORTLIB = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "importlib", "")
_NO_FRAMES = (_OWN_FILES, _IMPORTLIB, "<frozen importlib")
"""How the files begin whose frames are left out."""


def kind_of(error: BaseException) -> str:
    """The name of an exception's class, with its module unless that is `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def message_of(error: BaseException) -> str:
    """`str()` of an exception, whatever that does."""
    try:
        return valid(str(error))
    except Exception as broken:
        return f"<its __str__ raised {kind_of(broken)}>"


def valid(text: str) -> str:
    """Text that is valid Unicode: of a file's name, for instance, lone surrogates are shown as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def format_traceback(error: BaseException) -> str:
    """The traceback with chain and notes, and without frames of Re:BEAM."""
    try:
        summary = traceback.TracebackException.from_exception(error)
    except Exception:
        # A class whose attributes cannot be asked for: where it was raised, at least.
        return valid("".join(traceback.format_tb(error.__traceback__)) + f"{kind_of(error)}: {message_of(error)}\n")
    _drop_own_frames(summary, set())
    return valid("".join(summary.format()))


def _drop_own_frames(summary: traceback.TracebackException, seen: set[int]) -> None:
    if id(summary) in seen:
        return
    seen.add(id(summary))
    if summary.stack:
        summary.stack[:] = [
            frame
            for frame in summary.stack
            if not frame.filename.startswith(_NO_FRAMES) and frame.filename != "<string>"
        ]
    for linked in (summary.__cause__, summary.__context__, *(summary.exceptions or ())):
        if linked is not None:
            _drop_own_frames(linked, seen)


def describe(error: BaseException) -> tuple[str, str, str, bytes]:
    """Class, message and traceback of an exception, and the rest for its receiver (`_errors.remote`): its own pickle,
    if it has one that can be read back, its notes, and what led to it."""
    try:
        pickled = _exceptions.dumps(error)
    except Exception:
        pickled = None
    notes: list[str] = []
    with contextlib.suppress(Exception):
        notes = [str(note) for note in getattr(error, "__notes__", ())]
    rest = pickle.dumps((pickled, notes, _chain(error)), 5)
    return kind_of(error), message_of(error), format_traceback(error), rest


def _chain(error: BaseException) -> list[str]:
    chain: list[str] = []
    seen = {id(error)}
    current: BaseException | None = error
    while current is not None:
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if current is None or id(current) in seen:
            break
        seen.add(id(current))
        chain.append(f"{kind_of(current)}: {message_of(current)}")
    return chain


def is_answer(method: str, error: BaseException, resolve: Callable[[str], Callable[..., Any]]) -> bool:
    """Whether a method declares this exception to be an answer (see `rebeam.raises`)."""
    declared: Any = getattr(resolve(method), "__rebeam_raises__", ())
    return isinstance(error, declared)
