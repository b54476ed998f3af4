"""What the node does for a client that only an actor can do: it starts others, and reads and writes tables.

A client's gateway is started for it when it first needs one, and ends with its connection. What comes and goes is plain
data; it must not know how that is carried.
"""

from __future__ import annotations

import importlib
import itertools
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from rebeam import _functions, _runtime, _tables
from rebeam._actor import Actor
from rebeam._errors import ChildError, NoTable, RebeamError, SpecError, described
from rebeam._exit import ExitReason
from rebeam._failure import format_traceback, kind_of, message_of
from rebeam._options import Backoff
from rebeam._plain import is_plain
from rebeam._ref import Pid
from rebeam._spec import ChildSpec, child

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gateway(Actor):
    """The actor of one connection."""

    def init(self) -> None:
        self._walk: Iterator[tuple[Any, Any]] | None = None

    def start(self, what: str, args: list[Any], options: dict[str, Any], supervisor: str | None) -> dict[str, Any]:
        """As `rebeam.start`; gives the `address` of the actor, or what is wrong."""
        try:
            ref = _functions.start(_named(what), *args, supervisor=supervisor, **_options(options))
        except Exception as error:
            return _failure(error)
        number, started = ref._address, _runtime.me().pid.started
        return {"address": number if isinstance(number, str) else f"actor {number}@{started}"}

    def get_or_start(
        self, key: str, what: str, args: list[Any], options: dict[str, Any], supervisor: str | None
    ) -> dict[str, Any]:
        """As `rebeam.get_or_start`; gives the `address` of the actor, or what is wrong."""
        try:
            _functions.get_or_start(key, _named(what), *args, supervisor=supervisor, **_options(options))
        except Exception as error:
            return _failure(error)
        return {"address": key}

    def tables(self) -> list[dict[str, Any]]:
        """What is known of each table."""
        infos = []
        for name in _tables.tables():
            try:
                info = _tables.Table[Any, Any](name).info()
            except NoTable:
                continue
            infos.append({**info._asdict(), "owner": tuple(info.owner)})
        return infos

    def table(self, name: str, method: str, args: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Does something with a table; gives its `value`, a list if it goes over rows, or what is wrong."""
        if method not in _TABLE_METHODS:
            raise SpecError(f"`{method}` is nothing that is done to a table from outside")
        table: Any = _tables.Table(name)
        try:
            value = getattr(table, method)(*args, **options)
            return {"value": list(value) if method in _WALKS else value}
        except KeyError as error:
            return {"missing": error.args[0] if error.args else None}
        except Exception as error:
            return _failure(error)

    def table_page(
        self, name: str, prefix: tuple[Any, ...] | None, most: int, go_on: bool, is_exact: bool
    ) -> dict[str, Any]:
        """The next rows of one moment, `most` at most: a list that is shorter is the last one.

        Args:
            go_on: with the moment of the call before.
            is_exact: whether a value that is not plain data is an error, rather than shown by its class.
        """
        try:
            walk = self._walk
            if walk is None or not go_on:
                table: _tables.Table[Any, Any] = _tables.Table(name)
                self._walk = walk = iter(table.items()) if prefix is None else table.prefix(prefix)
            return {"value": [_plain_row(key, value, is_exact) for key, value in itertools.islice(walk, most)]}
        except Exception as error:
            return _failure(error)

    def table_put(self, name: str, rows: list[tuple[Any, Any]]) -> dict[str, Any]:
        """Puts rows."""
        try:
            return {"value": _tables.Table[Any, Any](name).put_many(rows)}
        except Exception as error:
            return _failure(error)


def _plain_row(key: Any, value: Any, is_exact: bool) -> tuple[Any, Any]:
    if is_plain(value):
        return key, value
    cls = type(value)
    kind = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    if is_exact:
        raise TypeError(f"what is under {key!r} is not plain data, but a `{kind}`")
    return key, f"<{kind}>"


_WALKS = frozenset({"keys", "values", "items", "range", "prefix"})

_TABLE_METHODS = _WALKS | {
    "__contains__",
    "__delitem__",
    "__getitem__",
    "__len__",
    "clear",
    "compare_and_set",
    "delete",
    "delete_all",
    "delete_prefix",
    "first",
    "get",
    "insert",
    "insert_new",
    "last",
    "next",
    "pop",
    "prev",
    "put_many",
    "setdefault",
    "take",
    "touch",
    "update_counter",
}


def spec() -> ChildSpec[Gateway]:
    """How a gateway is started."""
    return child(Gateway, id="client", restart="temporary", shutdown="brutal_kill")


def _named(what: str) -> Any:
    """A class or function by its module and name."""
    module, _, name = what.partition(":")
    if not module or not name:
        raise SpecError(f"`{what}` names no class; write `module:Class`")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise SpecError(f"`{what}` cannot be imported by the node: {kind_of(error)}: {message_of(error)}") from error
    try:
        return attrgetter(name)(imported)
    except AttributeError:
        raise SpecError(f"there is no `{name}` in the module `{module}`") from None


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they were before they became plain data."""
    if isinstance(options.get("backoff"), tuple):
        options["backoff"] = Backoff(*options["backoff"])
    return options


def _failure(error: Exception) -> dict[str, Any]:
    """An error as plain data; `raised` is the other way."""
    if isinstance(error, ChildError):
        reason = error.reason and tuple(error.reason)
        return {"child_error": (error.kind, str(error), error.pid and tuple(error.pid), reason, error.child)}
    return {"error": (kind_of(error), message_of(error), format_traceback(error))}


def raised(answer: dict[str, Any]) -> RebeamError | None:
    """What an answer of a gateway says is wrong, if anything is."""
    if "child_error" in answer:
        kind, text, pid, reason, child = answer["child_error"]
        return ChildError(kind, text, pid and Pid(*pid), reason and ExitReason(*reason), child)
    if "error" in answer:
        return described(*answer["error"])
    return None
