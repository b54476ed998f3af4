"""Handles on actors: `ActorRef` follows restarts, `Pid` means one incarnation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

from rebeam import _rebeam
from rebeam._options import Priority, checked_timeout, one_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import EllipsisType

    from rebeam._actor import Actor
    from rebeam._pending import Pending
    from rebeam._stream import Stream

A = TypeVar("A", bound="Actor")
R = TypeVar("R")
S = TypeVar("S")
P = ParamSpec("P")

Timeout: TypeAlias = "float | EllipsisType | None"
"""How long a call waits for its answer, and a cast for room: seconds; None: forever; `...`: as long as the call in
hand still has, and 5 s, as OTP, if none is in hand."""


class Pid(NamedTuple):
    """One incarnation of an actor, as OTP's pid. Never reused, and dead forever once the incarnation ended.

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


class Via(NamedTuple):
    """The address of whoever has a key of a registry of the tree, made by `via`.

    Attributes:
        registry: the registry's name.
        key: the key, encoded.
    """

    registry: str
    key: bytes

    def __str__(self) -> str:
        return f"{self.registry}[{_rebeam.registry_key_label(self.key)}]"


To: TypeAlias = "ActorRef[Any] | Pid | Via | str"
"""How an actor is named: by a handle, an incarnation, a key of a registry, or a name."""


def address(to: To) -> Any:
    """As `_rebeam` wants it.

    Raises:
        TypeError: it names no actor.
    """
    if isinstance(to, ActorRef):
        return to._address
    if not isinstance(to, (str, Pid, Via)):
        hint = "; it is its `pid` that is meant" if hasattr(to, "pid") else ""
        raise TypeError(f"{to!r} names no actor: that is a handle, a name, a `Pid`, or what `via` gives{hint}")
    return to


class Target(NamedTuple):
    """How a reference is used: see `ActorRef.options`."""

    timeout: Timeout = ...
    is_high: bool = False
    is_plain: bool = False
    """Whether what is sent is plain data, for a receiver without Python."""


def method_name(method: Callable[..., Any]) -> str:
    try:
        return method.__name__
    except AttributeError:
        raise TypeError(f"{method!r} is no method: `ref.call(Class.method, …)`, or `ref.call.method(…)`") from None


class _Way(Generic[A, S]):
    """A way to use a method: `way(Class.method, …)`, typed exactly, or `way.method(…)`, short. Gives an `S`."""

    __slots__ = ("_ref",)

    def __init__(self, ref: ActorRef[A]) -> None:
        self._ref = ref

    def __getattr__(self, method: str) -> Callable[..., S]:
        if method.startswith("_"):
            raise AttributeError(method)

        def short(*args: Any, **kwargs: Any) -> S:
            return self._send(method, args, kwargs)

        return short

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> S:
        raise NotImplementedError


class _Call(_Way[A, Any]):
    """`ref.call(Class.method, …)`, or `ref.call.method(…)`."""

    __slots__ = ()

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def __call__(self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ref = self._ref
        return ref._via.call(ref._address, method, args, kwargs, ref._target)


class _Cast(_Way[A, None]):
    """`ref.cast(Class.method, …)`, or `ref.cast.method(…)`: sends and does not wait."""

    __slots__ = ()

    def __call__(self, method: Callable[Concatenate[A, P], Any], *args: P.args, **kwargs: P.kwargs) -> None:
        self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ref = self._ref
        ref._via.cast(ref._address, method, args, kwargs, ref._target)


class _ACall(_Way[A, "Coroutine[Any, Any, Any]"]):
    """`await ref.acall(Class.method, …)`, or `await ref.acall.method(…)`."""

    __slots__ = ()

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._ref._acall(method, args, kwargs)


class _ACast(_Way[A, "Coroutine[Any, Any, None]"]):
    """`await ref.acast(Class.method, …)`, or `await ref.acast.method(…)`: sends once there is room."""

    __slots__ = ()

    def __call__(
        self, method: Callable[Concatenate[A, P], Any], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, None]:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, None]:
        return self._ref._acast(method, args, kwargs)


class _Request(_Way[A, "Pending[Any]"]):
    """`ref.request(Class.method, …)`, or `ref.request.method(…)`: a call that is waited for later, or not at all."""

    __slots__ = ()

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[R]: ...
    @overload
    def __call__(self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending[Any]:
        from rebeam._pending import request

        return request(self._ref._address, method, (args, kwargs), self._ref._target, is_method=True)


class _ARequest(_Way[A, "Coroutine[Any, Any, Pending[Any]]"]):
    """`await ref.arequest(Class.method, …)`, or `await ref.arequest.method(…)`: a `Pending`, once there is room."""

    __slots__ = ()

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Pending[R]]: ...
    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Pending[R]]: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._ref._arequest(method, args, kwargs)


class _Stream(_Way[A, "Stream[Any]"]):
    """`ref.stream(Class.method, …)`, or `ref.stream.method(…)`: what a generator yields, as it is wanted."""

    __slots__ = ()

    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], AsyncIterator[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Stream[R]: ...
    @overload
    def __call__(
        self, method: Callable[Concatenate[A, P], Iterator[R]], *args: P.args, **kwargs: P.kwargs
    ) -> Stream[R]: ...
    def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._send(method_name(method), args, kwargs)

    def _send(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream[Any]:
        return self._ref._stream(method, args, kwargs)


class ActorRef(Generic[A]):
    """A handle on an actor of class `A`. It can be sent to other actors, and follows restarts unless made of a `Pid`.

    Attributes:
        call: `call(Class.method, *args, **kwargs)` waits for the method's result and returns it.
            Raises what the method raised (with the remote traceback as its cause), `ActorDied` if the actor died with
            the call in hand, `NoProc` if there is no such actor, `CallTimeout` after the timeout, `DeadlockError` if
            it would wait forever, `BadCall` if the arguments do not fit, `Unpicklable` before anything is sent.
        acall: the same to be awaited, in an `async def` method: the others of this actor go on meanwhile. Cancelling
            the task that awaits it cancels the call.
        request: the same without waiting: gives a `Pending`, whose `result()` waits, and which can be awaited. Where
            the mailbox is full it waits for room; `arequest` awaits that.
        stream: for a method that is a generator: iterates, plainly or with `async for`, over what it yields. It runs
            only as far as its values are wanted, and ends when either side does.
        cast: the same without waiting. Raises `MailboxFull` if there was no room for the whole timeout; not if there
            is no such actor.
        acast: the same to be awaited: where the mailbox is full, only the task waits for room.
    """

    __slots__ = ("_address", "_target", "call", "cast")

    _via: Any = _rebeam
    """Who sends: this process's own channel."""

    call: _Call[A]
    cast: _Cast[A]

    @property
    def acall(self) -> _ACall[A]:
        return _ACall(self)

    @property
    def acast(self) -> _ACast[A]:
        return _ACast(self)

    @property
    def request(self) -> _Request[A]:
        return _Request(self)

    @property
    def arequest(self) -> _ARequest[A]:
        return _ARequest(self)

    @property
    def stream(self) -> _Stream[A]:
        return _Stream(self)

    def __init__(self, address: str | int | Pid | Via | tuple[str, int], target: Target = Target()) -> None:  # noqa: B008
        self._address = address
        self._target = target
        self.call = _Call(self)
        self.cast = _Cast(self)

    def options(self, *, timeout: Timeout = ..., priority: Priority = "normal") -> ActorRef[A]:
        """The same actor, used differently.

        Args:
            timeout: seconds a call waits for its answer, and a cast for room; None: forever. Default: as long as the
                call in hand still has, and 5 s if none is in hand.
            priority: `normal`, or `high` to overtake normal mail.

        Raises:
            SpecError: a value of the wrong type, or an unknown word.
        """
        one_of("priority", priority, Priority)
        return ActorRef(self._address, Target(checked_timeout(timeout), priority == "high"))

    async def _acall(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from rebeam._pending import acall

        return await acall(self._address, method, (args, kwargs), self._target, is_method=True)

    def _stream(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stream[Any]:
        from rebeam._stream import Stream

        return Stream(self, method, args, kwargs)

    async def _arequest(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending[Any]:
        from rebeam._pending import request, when_room

        def send(target: Target) -> Pending[Any]:
            return request(self._address, method, (args, kwargs), target, is_method=True, has_room=True)

        return await when_room(self._address, method, self._target, send)

    async def _acast(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        from rebeam._pending import when_room

        def send(target: Target) -> None:
            _rebeam.cast(self._address, method, args, kwargs, target, has_room=True)

        await when_room(self._address, method, self._target, send)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorRef, (self._address, self._target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __str__(self) -> str:
        return f"actor {self._address}" if isinstance(self._address, int) else str(self._address)

    def __repr__(self) -> str:
        return f"<ActorRef {f'#{self._address}' if isinstance(self._address, int) else self._address}>"


def partition(actor: type[A], supervisor: str, key: object) -> ActorRef[A]:
    """A handle on the copy that a key falls to, of the `PartitionSupervisor` with this name.

    Args:
        actor: its class.
        supervisor: its supervisor's name.
        key: plain data. A whole number falls to the copy of that number, modulo how many there are.
    """
    return ActorRef((supervisor, _rebeam.key_number(key)))


def ref(actor: type[A], to: str | Via | Pid) -> ActorRef[A]:
    """A handle on the actor with this name or key, whichever incarnation holds it, now or later; or on one incarnation.

    Nothing is looked up: a call to a name that nobody has raises `NoProc`.

    Args:
        actor: its class, for the types of its methods.
        to: its name, what `via` gives, or a `Pid`.
    """
    return ActorRef(address(to))
