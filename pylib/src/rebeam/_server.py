"""Servers of free form messages, as OTP's `gen_server`; and what such messages do to any actor."""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from rebeam import _rebeam
from rebeam._actor import Actor
from rebeam._errors import BadCall, BadReturn, Stop
from rebeam._exit import Certificate, ExitReason, certificate
from rebeam._ref import Pid

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebeam._stream import Streams


class Caller(NamedTuple):
    """Who waits for an answer. It can be kept, or sent to another actor, which then answers with `rebeam.reply`.

    Attributes:
        pid: the incarnation that called; None for somebody outside the tree.
    """

    pid: Pid | None
    client: int
    call: int
    is_plain: bool


class Reply(NamedTuple):
    """Returned by `handle_call`: the answer.

    Attributes:
        value: what the caller gets.
        then: what to do next: `Continue`, `Idle` or `Hibernate`.
    """

    value: Any
    then: Continue | Idle | Hibernate | None = None


class NoReply(NamedTuple):
    """Returned by a callback: no answer now. A call is answered later, with `rebeam.reply`.

    Attributes:
        then: what to do next: `Continue`, `Idle` or `Hibernate`.
    """

    then: Continue | Idle | Hibernate | None = None


class Continue(NamedTuple):
    """Has `handle_continue` called next, before any message.

    Attributes:
        argument: what it is called with.
    """

    argument: Any = None


class Idle(NamedTuple):
    """Has `handle_info` called with `TIMEOUT` if no message comes for this many seconds."""

    seconds: float


class Hibernate(NamedTuple):
    """Has free memory given back to the system before the next message is waited for: a hint."""


class _Timeout:
    """The type of `TIMEOUT`."""

    def __repr__(self) -> str:
        return "rebeam.TIMEOUT"

    def __reduce__(self) -> str:
        return "TIMEOUT"


TIMEOUT = _Timeout()
"""What `handle_info` gets when the time of `Idle` has passed without a message."""


class Down(NamedTuple):
    """What `handle_info` gets when a monitored incarnation has ended.

    Attributes:
        monitor: the monitor's number.
        pid: who ended; None if nobody was there.
        reason: why.
        certificate: all that is known about the end, if it was an actor's.
    """

    monitor: int
    pid: Pid | None
    reason: ExitReason
    certificate: Certificate | None


class Exit(NamedTuple):
    """What `handle_info` gets, in an actor that traps exits, when a linked one has ended or an exit signal came.

    Attributes:
        pid: from whom.
        reason: why.
    """

    pid: Pid
    reason: ExitReason


class DeadLetter(NamedTuple):
    """What `handle_info` gets, after `watch_dead_letters`, when a message was not handled and will not be.

    Attributes:
        id: its number, for `rebeam dead show`.
        to: for whom it was: a name, a path, or the address as it was written.
        sender: from whom.
        method: the method.
        cause: `failed` (its handler raised), `outcome_unknown` (its receiver was killed with it in hand), `poison` (it
            was in hand at `max_deliveries` deaths), `receiver_gone`, `pid_dead`, `nobody`, `overflow`, `not_kept`,
            `too_large`.
        deliveries: how often it was handed over.
        bytes: of its content.
    """

    id: int
    to: str
    sender: str
    method: str
    cause: str
    deliveries: int
    bytes: int


class GenServer(Actor):
    """An actor that takes messages of any form, by the callbacks of OTP's `gen_server`. Its state is itself.

    `init` may return `Continue`, `Idle` or `Hibernate`; every callback may return or raise `Stop`. What else it may
    return is said below; anything else ends the actor with `bad_return`.
    """

    def handle_call(self, message: Any, caller: Caller) -> Reply | NoReply | Stop:
        """Answers `rebeam.call(ref, message)`: return `Reply(value)`, or `NoReply()` and answer later."""
        raise NotImplementedError(f"`{type(self).__qualname__}` has no handle_call for {message!r}")

    def handle_cast(self, message: Any) -> NoReply | Continue | Idle | Hibernate | Stop | None:
        """Handles `rebeam.cast(ref, message)`."""
        raise NotImplementedError(f"`{type(self).__qualname__}` has no handle_cast for {message!r}")

    def handle_continue(self, argument: Any) -> NoReply | Continue | Idle | Hibernate | Stop | None:
        """Goes on after `Continue(argument)`."""
        raise NotImplementedError(f"`{type(self).__qualname__}` has no handle_continue for {argument!r}")


def caller() -> Caller:
    """The caller of the method that runs, whose answer then comes from `rebeam.reply` instead of from `return`.

    Raises:
        RuntimeError: no call is in hand.
    """
    found = _rebeam.caller()
    if found is None:
        raise RuntimeError("no call is in hand: a cast has no caller")
    _rebeam.defer()
    return _caller(found)


def reply(to: Caller, value: Any) -> None:
    """Answers a call. A second answer, or one that comes after the caller's timeout, is dropped.

    Raises:
        Unpicklable: the value cannot be sent.
    """
    _rebeam.reply(to, value)


def continue_with(method: Callable[..., Any], *args: Any) -> None:
    """Has a method of this actor called right after the one that runs, before any message."""
    _rebeam.set_after(lambda: method(*args))


def idle(seconds: float) -> None:
    """Has `handle_info` called with `TIMEOUT` if no message comes for so long after the one in hand."""
    _rebeam.set_idle(seconds)


def hibernate() -> None:
    """Gives free memory back to the system after the message in hand."""
    _rebeam.set_after(_hibernate)


def _hibernate() -> None:
    import gc

    gc.collect()
    _rebeam.trim_memory()


def _caller(fields: dict[str, Any]) -> Caller:
    pid = fields.pop("pid")
    return Caller(pid=Pid(*pid) if pid else None, **fields)


def down(
    monitor: int,
    pid: tuple[int, int, int] | None,
    reason: tuple[str, str, str | None],
    known: dict[str, Any] | None,
) -> Down:
    """Made by `_rebeam`."""
    return Down(monitor, Pid(*pid) if pid else None, ExitReason(*reason), certificate(known) if known else None)


def exit_message(pid: tuple[int, int, int], reason: tuple[str, str, str | None]) -> Exit:
    """Made by `_rebeam`."""
    return Exit(Pid(*pid), ExitReason(*reason))


def receiver(actor: Actor, resolve: Callable[[str], Callable[..., Any]]) -> Callable[[str, Any], Any]:
    """What handles messages of free form for an actor: gets the callback's name and the message.

    It gives the answer, or a coroutine that does where the callback is an `async def`.
    """
    server = actor if isinstance(actor, GenServer) else None
    streams: Streams | None = None

    def receive(callback: str, message: Any) -> Any:
        nonlocal streams
        if callback == "handle_info":
            if streams is not None and isinstance(message, Down):
                stream = streams.of(message.monitor)
                if stream is not None:
                    return streams.close(stream)
            return _settled(actor, callback, actor.handle_info(message))
        if callback.startswith("stream_"):
            from rebeam._stream import Streams, is_request

            if not is_request(callback, message):
                raise BadCall(f"`{callback}` with something else than it takes")
            streams = streams or Streams(resolve)
            return streams.handle(callback, message)
        if server is None:
            raise BadCall(f"`{type(actor).__qualname__}` is no GenServer: call its methods")
        if callback == "handle_cast":
            return _settled(actor, callback, server.handle_cast(message))
        return _call(server, message)

    return receive


def _settled(actor: Actor, callback: str, result: Any) -> Any:
    if not isinstance(result, CoroutineType):
        return settle(actor, callback, result)

    async def wait() -> None:
        settle(actor, callback, await result)

    return wait()


def _call(server: GenServer, message: Any) -> Any:
    fields = _rebeam.caller()
    if fields is None:
        raise BadCall("a call without a caller")
    result: Any = server.handle_call(message, _caller(fields))
    if not isinstance(result, CoroutineType):
        return _answer(server, result)

    async def wait() -> Any:
        return _answer(server, await result)

    return wait()


def _answer(server: GenServer, result: Any) -> Any:
    if isinstance(result, Reply):
        settle(server, "handle_call", result.then)
        return result.value
    if isinstance(result, Stop):
        raise result
    if not isinstance(result, NoReply):
        raise BadReturn(repr(result))
    _rebeam.defer()
    settle(server, "handle_call", result.then)
    return None


def settle(actor: Actor, callback: str, result: Any) -> None:
    """Does what a callback's return value asks for."""
    if isinstance(result, NoReply):
        result = result.then
    if result is None:
        return
    if isinstance(result, Continue):
        if not isinstance(actor, GenServer):
            raise BadReturn(f"{result!r}: only a GenServer continues so")
        server, argument = actor, result.argument
        _rebeam.set_after(lambda: settle(server, "handle_continue", server.handle_continue(argument)))
    elif isinstance(result, Idle):
        _rebeam.set_idle(result.seconds)
    elif isinstance(result, Hibernate):
        hibernate()
    elif isinstance(result, Stop):
        raise result
    elif isinstance(actor, GenServer):
        raise BadReturn(f"{result!r} from {callback}" if callback != "handle_call" else repr(result))


def is_stop_refused(error: BaseException) -> bool:
    """Whether an actor that has raised this as no message came has to go on, as one has come meanwhile."""
    if not isinstance(error, Stop) or error.reason not in ("normal", "shutdown"):
        return False
    return not _rebeam.stop_if_idle(ExitReason(error.reason, error.detail, None))


def system(actor: Actor) -> Callable[[str, Any], Any]:
    """What is asked of an actor's process: its state, and to hold on or to go on (which `_rebeam` does)."""

    def handle(request: str, content: Any) -> Any:
        if request == "get_state":
            return vars(actor)
        if request == "replace_state":
            return _replace_state(actor, content)
        return None

    return handle


def _replace_state(actor: Actor, function: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Has a function make new attributes of an actor's old ones. If it raises, they are as they were, whatever it has
    changed within them (UPG-002); of an attribute that cannot be copied (a lock, a socket) only the reference is."""
    before = _copies(actor)
    try:
        state = function(dict(vars(actor)))
        if not isinstance(state, dict):
            raise TypeError(f"the function gave {type(state).__qualname__}, not a dict of attributes")
    except BaseException:
        vars(actor).clear()
        vars(actor).update(before)
        raise
    vars(actor).clear()
    vars(actor).update(state)
    return state


def _copies(actor: Actor) -> dict[str, Any]:
    """Copies of an actor's attributes, which share what those share; what cannot be copied is itself."""
    import copy

    memo: dict[int, Any] = {id(actor): actor}
    copies: dict[str, Any] = {}
    for name, value in vars(actor).items():
        # What a copy that fails has begun is not to be found by the others.
        known = dict(memo)
        try:
            copies[name] = copy.deepcopy(value, known)
        except Exception:
            copies[name] = value
        else:
            memo = known
    return copies
