"""Handles on actors: `ActorRef` follows restarts, `Pid` means one incarnation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

from rebeam import _runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from rebeam._actor import Actor

A = TypeVar("A", bound="Actor")
R = TypeVar("R")
P = ParamSpec("P")

DEFAULT_TIMEOUT = 5.0
"""Seconds that a call waits for its answer, as OTP's."""


class Pid(NamedTuple):
    """One incarnation of an actor, as OTP's pid. Never reused, and dead for ever once the incarnation ended.

    Mail to a pid dies with it. It has nothing to do with the id of an OS process.

    Attributes:
        node: the node's number; 0 while there is one node.
        started: when that node was started, in seconds of the Unix epoch.
        serial: counts up over all incarnations of that node.
    """

    node: int
    started: int
    serial: int

    def __str__(self) -> str:
        return f"<{self.node}.{self.serial}>"


class Target(NamedTuple):
    """How a reference is used: see `ActorRef.options`."""

    timeout: float | None = DEFAULT_TIMEOUT
    is_high: bool = False


class _Call(Generic[A]):
    """`ref.call(Class.method, …)`, typed exactly, or `ref.call.method(…)`, short."""

    __slots__ = ("_ref",)

    def __init__(self, ref: ActorRef[A]) -> None:
        self._ref = ref

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def __call__(self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        ref = self._ref
        timeout, is_high = ref._target
        return _runtime.call(ref._address, method.__name__, args, kwargs, timeout, is_high)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        ref = self._ref
        timeout, is_high = ref._target

        def short(*args: Any, **kwargs: Any) -> Any:
            return _runtime.call(ref._address, method, args, kwargs, timeout, is_high)

        return short


class _Cast(Generic[A]):
    """`ref.cast(Class.method, …)`, or `ref.cast.method(…)`: sends and does not wait."""

    __slots__ = ("_ref",)

    def __init__(self, ref: ActorRef[A]) -> None:
        self._ref = ref

    def __call__(self, method: Callable[Concatenate[A, P], Any], *args: P.args, **kwargs: P.kwargs) -> None:
        ref = self._ref
        timeout, is_high = ref._target
        _runtime.cast(ref._address, method.__name__, args, kwargs, timeout, is_high)

    def __getattr__(self, method: str) -> Callable[..., None]:
        if method.startswith("_"):
            raise AttributeError(method)
        ref = self._ref
        timeout, is_high = ref._target

        def short(*args: Any, **kwargs: Any) -> None:
            _runtime.cast(ref._address, method, args, kwargs, timeout, is_high)

        return short


class ActorRef(Generic[A]):
    """A handle on an actor of class `A`. It can be sent to other actors, and follows restarts unless made of a `Pid`.

    Attributes:
        call: `call(Class.method, *args, **kwargs)` waits for the method's result and returns it.
            Raises what the method raised (with the remote traceback as its cause), `ActorDied` if the actor died with
            the call in hand, `NoProc` if there is no such actor, `CallTimeout` after the timeout, `BadCall` if the
            arguments do not fit, `Unpicklable` before anything is sent.
        cast: the same without waiting. Raises `MailboxFull` if there was no room for the whole timeout; not if there
            is no such actor.
    """

    __slots__ = ("_address", "_target", "call", "cast")

    call: _Call[A]
    cast: _Cast[A]

    def __init__(self, address: str | int | Pid | tuple[str, int], target: Target = Target()) -> None:  # noqa: B008
        self._address = address
        self._target = target
        self.call = _Call(self)
        self.cast = _Cast(self)

    def options(self, *, timeout: float | None = DEFAULT_TIMEOUT, priority: str = "normal") -> ActorRef[A]:
        """The same actor, used differently.

        Args:
            timeout: seconds a call waits for its answer, and a cast for room; None: for ever.
            priority: `normal`, or `high` to overtake normal mail.
        """
        if priority not in ("normal", "high"):
            raise ValueError(f"a priority of {priority!r}; it is 'normal' or 'high'")
        return ActorRef(self._address, Target(timeout, priority == "high"))

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorRef, (self._address, self._target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __repr__(self) -> str:
        return f"<ActorRef {f'#{self._address}' if isinstance(self._address, int) else self._address}>"


def partition(actor: type[A], supervisor: str, key: object) -> ActorRef[A]:
    """A handle on the copy that a key falls to, of the `PartitionSupervisor` with this name.

    Args:
        actor: its class.
        supervisor: its supervisor's name.
        key: plain data. A whole number falls to the copy of that number, modulo how many there are.
    """
    from rebeam import _rebeam

    return ActorRef((supervisor, _rebeam.key_number(key)))


def ref(actor: type[A], to: str | Pid) -> ActorRef[A]:
    """A handle on the actor with this name (whichever incarnation holds it, now or later), or on one incarnation.

    Nothing is looked up: a call to a name that nobody has raises `NoProc`.

    Args:
        actor: its class, for the types of its methods.
        to: its name or a `Pid`.
    """
    return ActorRef(to)
