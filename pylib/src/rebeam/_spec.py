"""How an application declares its tree. Checked where it is written down, so that errors point at the user's line."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rebeam._actor import Actor
from rebeam._errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
RESTARTS = ("permanent", "transient", "temporary")
AUTO_SHUTDOWNS = ("never", "any_significant", "all_significant")

DEFAULT_SHUTDOWN = 5.0
"""Seconds an actor has for its end, as OTP's."""

DEFAULT_START_TIMEOUT = 60.0
"""Seconds `init` may take (MAP-09 of the conformance table)."""

DEFAULT_MAILBOX = (10_000, 64 * 1024 * 1024)
"""Messages and bytes that may wait for an actor (MAP-13)."""


def _one_of(what: str, value: object, allowed: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it is one of {', '.join(map(repr, allowed))}"
    raise SpecError(f"{what}={value!r} is not known{hint}")


def _number(what: str, value: object, least: float, *, strict: bool = False) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or value != value or value < least or (strict and value == least):  # type: ignore[operator]
        bound = f"above {least:g}" if strict else f"{least:g} or more"
        raise SpecError(f"{what}={value!r}: it must be a number of {bound}")
    return float(value)  # type: ignore[arg-type]


def _shutdown(value: object) -> float | str:
    if value in ("infinity", "brutal_kill"):
        return str(value)
    if isinstance(value, str):
        return _one_of("shutdown", value, ("infinity", "brutal_kill"))
    seconds = _number("shutdown", value, 0)
    return "infinity" if seconds == float("inf") else seconds


def _refuse_unknown(what: str, unknown: dict[str, Any], known: Iterable[str]) -> None:
    for key in unknown:
        near = difflib.get_close_matches(key, list(known), 1)
        hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(f'`{k}`' for k in known)}"
        raise SpecError(f"{what} has no option `{key}`{hint}")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One actor of a tree, made by `child`."""

    id: str
    name: str | None
    class_name: str
    start: tuple[type[Actor], tuple[Any, ...], dict[str, Any]]
    restart: str
    shutdown: float | str
    significant: bool
    start_timeout: float | None
    mailbox_limits: tuple[int | None, int | None]
    is_supervisor: bool = field(default=False, init=False)


_CHILD_OPTIONS = (
    "name",
    "id",
    "restart",
    "shutdown",
    "significant",
    "start_timeout",
    "max_messages_waiting",
    "max_bytes_waiting",
    "kwargs",
)


def child(
    actor: type[Actor],
    /,
    *args: Any,
    name: str | None = None,
    id: str | None = None,
    restart: str = "permanent",
    shutdown: float | str = DEFAULT_SHUTDOWN,
    significant: bool = False,
    start_timeout: float | None = DEFAULT_START_TIMEOUT,
    max_messages_waiting: int | None = DEFAULT_MAILBOX[0],
    max_bytes_waiting: int | None = DEFAULT_MAILBOX[1],
    kwargs: dict[str, Any] | None = None,
    **unknown: Any,
) -> ChildSpec:
    """An actor as a child of a supervisor.

    Args:
        actor: its class.
        args: positional arguments of `init`, the same at every start.
        kwargs: keyword arguments of `init`.
        name: registers it; at most one actor has a name. Default: none.
        id: unique among its siblings. Default: the name, else the class's name.
        restart: `permanent` (always started again), `transient` (after an abnormal end), `temporary` (never).
        shutdown: seconds between the order to stop and the kill; `infinity`, or `brutal_kill` for no order at all.
        significant: whether the supervisor's `auto_shutdown` looks at it.
        start_timeout: seconds `init` may take; None: no limit.
        max_messages_waiting: messages that may wait before senders have to; None: no limit.
        max_bytes_waiting: the same in bytes of content.

    Raises:
        SpecError: a value or an option that makes no sense.
    """
    _refuse_unknown("`child`", unknown, _CHILD_OPTIONS)
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        what = "an instance; give the class" if isinstance(actor, Actor) else "not a subclass of `rebeam.Actor`"
        raise SpecError(f"{actor!r} is {what}")
    for option, text in (("name", name), ("id", id)):
        if text is not None and (
            not isinstance(text, str) or not text or not text.isprintable() or text != text.strip()
        ):
            raise SpecError(f"{option}={text!r}: it must be text without line breaks or surrounding spaces")
    _check_arguments(actor, args, kwargs or {})
    for option, limit in (("max_messages_waiting", max_messages_waiting), ("max_bytes_waiting", max_bytes_waiting)):
        if limit is not None:
            _number(option, limit, 1)
    return ChildSpec(
        id=id or name or actor.__name__,
        name=name,
        class_name=f"{actor.__module__}.{actor.__qualname__}",
        start=(actor, args, kwargs or {}),
        restart=_one_of("restart", restart, RESTARTS),
        shutdown=_shutdown(shutdown),
        significant=bool(significant),
        start_timeout=None if start_timeout is None else _number("start_timeout", start_timeout, 0, strict=True),
        mailbox_limits=(max_messages_waiting, max_bytes_waiting),
    )


def _check_arguments(actor: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        inspect.signature(actor.init).bind(None, *args, **kwargs)
    except TypeError as error:
        raise SpecError(f"`{actor.__qualname__}.init`: {error}") from None


def unpicklable(spec: ChildSpec, error: BaseException) -> SpecError:
    """The error for a child whose class or arguments cannot be sent to its process."""
    from rebeam._pickling import explain

    cls, args, kwargs = spec.start
    if _is_importable(cls):
        return SpecError(f"child `{spec.id}`: {explain((args, kwargs), f'{cls.__qualname__}.init', error)}")
    return SpecError(f"child `{spec.id}`: the class `{cls.__qualname__}` must stand at the top level of its module")


def _is_importable(cls: type) -> bool:
    import sys

    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


class Supervisor:
    """A supervisor and its children, in start order. It runs in the Rust supervisor, not in a process of its own.

    Args:
        children: what `child` gives, further supervisors, or actor classes whose `init` needs no arguments.
        strategy: `one_for_one` (restart only who ended), `one_for_all` (all of them), `rest_for_one` (who ended and
            those after it).
        max_restarts: restarts allowed within `max_seconds`; one more, and the supervisor gives up. Default: 3.
        max_seconds: length of that sliding window. Default: 5.
        auto_shutdown: `never`, `any_significant`, `all_significant`: whether it ends with its significant children.
        id: unique among its siblings. Default: `supervisor`.
        restart, shutdown, significant: as for `child`, when it is one. Its shutdown time is `infinity` by default.

    Raises:
        SpecError: a value or an option that makes no sense.
    """

    __slots__ = (
        "auto_shutdown",
        "children",
        "id",
        "max_restarts",
        "max_seconds",
        "restart",
        "shutdown",
        "significant",
        "strategy",
    )
    is_supervisor = True

    def __init__(
        self,
        children: Iterable[ChildSpec | Supervisor | type[Actor]],
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        auto_shutdown: str = "never",
        id: str = "supervisor",
        restart: str = "permanent",
        shutdown: float | str = "infinity",
        significant: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_unknown("`Supervisor`", unknown, self.__slots__)
        self.strategy = _one_of("strategy", strategy, STRATEGIES)
        if not isinstance(max_restarts, int) or isinstance(max_restarts, bool):
            raise SpecError(f"max_restarts={max_restarts!r}: it must be a whole number")
        self.max_restarts = int(_number("max_restarts", max_restarts, 0))
        self.max_seconds = _number("max_seconds", max_seconds, 0, strict=True)
        self.auto_shutdown = _one_of("auto_shutdown", auto_shutdown, AUTO_SHUTDOWNS)
        self.id = id
        self.restart = _one_of("restart", restart, RESTARTS)
        self.shutdown = _shutdown(shutdown)
        self.significant = bool(significant)
        self.children = [self._child(one) for one in children]

    def _child(self, one: object) -> ChildSpec | Supervisor:
        if isinstance(one, (ChildSpec, Supervisor)):
            return one
        if isinstance(one, type) and issubclass(one, Actor):
            return child(one)
        raise SpecError(f"{one!r} cannot be a child; use `child(Class, ...)` or a `Supervisor`")

    def __repr__(self) -> str:
        return f"<Supervisor {self.id!r}: {len(self.children)} children, {self.strategy}>"
