"""Says which part of a message cannot be pickled. Imported only after a pickle has failed."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from rebeam._errors import Unpicklable

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DEPTH = 8


def explain(content: tuple[tuple[Any, ...], dict[str, Any]], method: str, error: BaseException) -> Unpicklable:
    """The error for a message whose pickle failed: it names the path to the culprit."""
    for path, part in (("args", content[0]), ("kwargs", content[1])):
        found = _culprit(path, part, 0, set())
        if found is not None:
            where, culprit = found
            cls = type(culprit)
            return Unpicklable(f"`{method}` cannot be sent: {where}: {cls.__module__}.{cls.__qualname__}: {error}")
    return Unpicklable(f"`{method}` cannot be sent: {error}")


def explain_message(message: object, error: BaseException) -> Unpicklable:
    """The same for a message of free form."""
    where, culprit = _culprit("message", message, 0, set()) or ("message", message)
    cls = type(culprit)
    return Unpicklable(f"{where} cannot be sent: {cls.__module__}.{cls.__qualname__}: {error}")


def explain_value(value: object, error: BaseException) -> Unpicklable:
    """The same for a value of a table."""
    where, culprit = _culprit("value", value, 0, set()) or ("value", value)
    cls = type(culprit)
    return Unpicklable(f"{where} cannot be put into a table: {cls.__module__}.{cls.__qualname__}: {error}")


def explain_state(state: object, error: BaseException) -> Unpicklable:
    """The same for what `checkpoint` returned."""
    where, culprit = _culprit("state", state, 0, set()) or ("state", state)
    cls = type(culprit)
    text = f"what `checkpoint` returned cannot be handed over: {where}: {cls.__module__}.{cls.__qualname__}: {error}"
    return Unpicklable(text)


def explain_result(result: object, method: str, error: BaseException) -> str:
    """What to say about a result that cannot be sent."""
    import inspect

    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        return f"`{method}` is a generator: iterate over `ref.stream(Class.{method}, …)`"
    if pickles(result):
        return f"the result of `{method}` cannot be sent: {error}"
    where, culprit = _culprit("result", result, 0, set()) or ("result", result)
    cls = type(culprit)
    return f"the result of `{method}` cannot be sent: {where}: {cls.__module__}.{cls.__qualname__}: {error}"


def _culprit(path: str, value: object, depth: int, seen: set[int]) -> tuple[str, object] | None:
    if id(value) in seen or pickles(value):
        return None
    seen.add(id(value))
    if depth < _MAX_DEPTH:
        for name, part in parts(value):
            found = _culprit(path + name, part, depth + 1, seen)
            if found is not None:
                return found
    return path, value


def pickles(value: object) -> bool:
    """Whether something can be pickled."""
    return why_not(value) is None


def why_not(value: object) -> Exception | None:
    """Why something cannot be pickled; None if it can."""
    try:
        pickle.dumps(value, 5)
    except Exception as error:
        return error
    return None


def parts(value: object) -> Iterator[tuple[str, object]]:
    """What something is made of, and how each of it is reached."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from ((f".{name}", part) for name, part in vars(value).items())
