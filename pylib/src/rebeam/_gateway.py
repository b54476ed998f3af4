"""What the node does for a client of `rebeam.connect` that only an actor can do: it starts others.

A client's gateway is started for it when it first needs one, and ends with its connection. What comes and goes is plain
data; it must not know how that is carried.
"""

from __future__ import annotations

import importlib
from operator import attrgetter
from typing import Any

from rebeam import _functions, _runtime
from rebeam._actor import Actor
from rebeam._errors import ChildError, RebeamError, SpecError, described
from rebeam._exit import ExitReason
from rebeam._failure import format_traceback, kind_of, message_of
from rebeam._options import Backoff
from rebeam._ref import Pid
from rebeam._spec import ChildSpec, child


class Gateway(Actor):
    """The actor of one connection."""

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
