"""What actors do to each other, as Erlang's processes: links, monitors, exit signals, stops, timers, introspection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar, overload

from rebeam import _pending, _rebeam, _runtime
from rebeam._errors import CallTimeout, EndedOtherwise, NoProc, stopping_self
from rebeam._exit import ExitReason, as_reason
from rebeam._pending import Pending
from rebeam._ref import ActorRef, Pid, Target, Timeout, To, Via, address

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebeam._actor import Actor

A = TypeVar("A", bound="Actor")
P = ParamSpec("P")


class Timer(NamedTuple):
    """A message that is to be sent. It belongs to the incarnation it is for, and goes with it.

    Attributes:
        maker: who set it.
        number: the maker's number for it.
    """

    maker: Pid
    number: int


def living(to: To) -> Pid | None:
    return to if isinstance(to, Pid) else pid_of(to)


def call(to: To, message: Any, timeout: Timeout = ...) -> Any:
    """Sends a message to a `GenServer` and waits for its answer. Errors as of `ActorRef.call`."""
    starter = _starter_of(to)
    if starter is not None:
        return starter.call_message(message, timeout)
    return _rebeam.call_message(address(to), "handle_call", message, timeout)


def _starter_of(to: To) -> Any:
    """What starts the actor of a handle again, if the handle does so."""
    from rebeam._functions import KeyedRef

    return to._via if isinstance(to, KeyedRef) else None


async def acall(to: To, message: Any, timeout: Timeout = ...) -> Any:
    """`call`, to be awaited."""
    starter = _starter_of(to)
    if starter is not None:
        return await starter.acall("handle_call", message, Target(timeout), is_method=False)
    return await _pending.acall(address(to), "handle_call", message, Target(timeout), is_method=False)


def cast(to: To, message: Any, timeout: Timeout = ...) -> None:
    """Sends a message to a `GenServer`, for `handle_cast`. Nothing is said if there is no such actor.

    Raises:
        MailboxFull: there was no room for the whole timeout.
    """
    starter = _starter_of(to)
    if starter is not None:
        starter.see_to("cast")
    _rebeam.send_message(address(to), "handle_cast", message, timeout)


async def acast(to: To, message: Any, timeout: Timeout = ...) -> None:
    """`cast`, to be awaited: where the mailbox is full, only the task waits for room."""
    await _send_when_room(to, "handle_cast", message, timeout)


def send(to: To, message: Any, timeout: Timeout = ...) -> None:
    """Sends a message to any actor, for `handle_info`. Nothing is said if the actor behind a handle is gone.

    Raises:
        NoProc: nobody has that name or key (as Erlang's `!`; `cast`, and `send` to a handle, say nothing).
        MailboxFull: there was no room for the whole timeout.
    """
    starter = _starter_of(to)
    if starter is not None:
        starter.see_to("send")
    _check_known(to)
    _rebeam.send_message(address(to), "handle_info", message, timeout)


async def asend(to: To, message: Any, timeout: Timeout = ...) -> None:
    """`send`, to be awaited: where the mailbox is full, only the task waits for room."""
    _check_known(to)
    await _send_when_room(to, "handle_info", message, timeout)


def _check_known(to: To) -> None:
    is_free = isinstance(to, str) and not _rebeam.is_name_known(to)
    if is_free or (isinstance(to, Via) and _rebeam.find(to) is None):
        raise NoProc(f"there is no actor `{to}`")


async def _send_when_room(to: To, callback: str, message: Any, timeout: Timeout) -> None:
    at, starter = address(to), _starter_of(to)
    if starter is not None:
        await starter.asee_to()

    def send(target: Target) -> None:
        _rebeam.send_message(at, callback, message, target.timeout, has_room=True)

    await _pending.when_room(at, callback, Target(timeout), send)


def receive(
    match: type | tuple[type, ...] | Callable[[Any], object] | None = None, timeout: float | None = None
) -> Any:
    """Takes the first message that fits out of this actor's mailbox, and waits for one; the others stay, in order.

    Only messages for `handle_info` are looked at: those of `send`, `Down`, `Exit`, timers. It blocks the method that
    calls it, and nothing else is handled meanwhile.

    Args:
        match: a type, a tuple of types, or a function that says of a message whether it fits; None: any does. A
            function decides by the message alone: given again, it is not asked again about those it has refused.
        timeout: seconds to wait; None: as long as it takes.

    Raises:
        TimeoutError: none came in time. Where nobody catches it, it ends the actor as any exception.
    """
    _check_match(match)
    found = _rebeam.receive(match, timeout)
    if found is None:
        raise TimeoutError(f"no message came within {timeout} s")
    return found[0]


async def areceive(
    match: type | tuple[type, ...] | Callable[[Any], object] | None = None, timeout: float | None = None
) -> Any:
    """`receive`, to be awaited: the other tasks of the event loop go on. Of several that wait, the first whose `match`
    fits gets the message, before any handler of this actor does."""
    _check_match(match)
    found = await _pending.areceive(match, timeout)
    if found is None:
        raise TimeoutError(f"no message came within {timeout} s")
    return found[0]


def _check_match(match: object) -> None:
    if match is not None and not (isinstance(match, (type, tuple)) or callable(match)):
        raise TypeError(f"match={match!r}: it is a type, a tuple of types or a function")


def pid_of(to: To) -> Pid | None:
    """The living incarnation behind a handle, a key or a name, or None. It may be dead by the time it is used."""
    found = _rebeam.resolve(address(to))
    return Pid(*found) if found else None


def link(to: To) -> None:
    """Ties this actor to an incarnation: when one ends other than normally, so does the other, unless it traps exits.

    Raises:
        NoProc: there is no such one, and this actor does not trap exits. If it does, it gets `Exit` with `noproc`.
    """
    pid = living(to)
    if pid is None or not _rebeam.link(pid):
        raise NoProc(f"there is no actor `{to}`")


def unlink(to: To) -> None:
    """Takes a link back, from either side. After it has returned no new `Exit` comes from there."""
    pid = living(to)
    if pid is not None:
        _rebeam.unlink(pid)


def trap_exits(traps: bool = True) -> None:
    """Has exit signals come as `Exit` messages to `handle_info`, instead of ending this actor."""
    _rebeam.trap_exits(traps)


def set_ready(ready: bool, reason: str = "") -> None:
    """Says whether this actor is ready for what it is there for: a node is ready (`/readyz`) when all its actors are.

    Until it says so, an actor is ready from when its `init` has returned.

    Args:
        ready: whether it is.
        reason: why it is not, for people. Default: `not ready`.
    """
    _rebeam.set_readiness(None if ready else reason or "not ready")


def monitor(to: To) -> int:
    """Has one `Down` come to `handle_info` when the incarnation ends that is there now; at once if there is none.

    Returns:
        The monitor's number, for `demonitor`.
    """
    return _rebeam.monitor(address(to))


def demonitor(monitor: int, *, flush: bool = False) -> None:
    """Takes a monitor back.

    Args:
        flush: takes a `Down` that has come already out of the mailbox, too.
    """
    _rebeam.demonitor(monitor, flush)


def exit(to: To, reason: str | ExitReason = "shutdown") -> None:
    """Sends an exit signal: who traps exits gets a message, others end with the reason (not for `normal`).

    As in OTP, the reason `kill` cannot be trapped: it is `kill(to)`.
    """
    if reason == "kill":
        kill(to)
    else:
        _rebeam.exit_signal(address(to), as_reason(reason))


def kill(to: To) -> None:
    """Ends an incarnation at once by SIGKILL, with the reason `killed`. It cannot be trapped."""
    _rebeam.kill(address(to), False)


def kill_hung(to: To) -> None:
    """The same, after a moment in which it writes down where it is, for its certificate."""
    _rebeam.kill(address(to), True)


def stop(to: To, reason: str | ExitReason = "normal", timeout: float | None = None) -> None:
    """Stops an actor or a supervisor in its turn, and waits until it has ended; `terminate` runs.

    It is not an order of its supervisor: a permanent child is started again.

    Args:
        reason: what it ends with.
        timeout: seconds to wait; None: as long as it takes.

    Raises:
        NoProc: there is none.
        DeadlockError: the stop would wait for the very actor that asks.
        EndedOtherwise: it ended for another reason.
        CallTimeout: it had not ended in time.
    """
    _pending.follow(stopping(to, reason, timeout), "stop")


async def astop(to: To, reason: str | ExitReason = "normal", timeout: float | None = None) -> None:
    """`stop`, to be awaited."""
    await _pending.afollow(stopping(to, reason, timeout))


def stopping(to: To, reason: str | ExitReason, timeout: float | None) -> _pending.Steps[None]:
    how, other = yield _rebeam.stop(address(to), as_reason(reason), timeout)
    if how == "noproc":
        raise NoProc(f"there is no actor `{to}`")
    if how == "self":
        raise stopping_self(to)
    if how == "timeout":
        raise CallTimeout(f"`{to}` did not end within {timeout} s")
    if how == "other" and other is not None:
        raise EndedOtherwise(ExitReason(*other))


def send_after(seconds: float, to: To, message: Any) -> Timer:
    """Sends a message after a time, for `handle_info`.

    Set on a pid, or by an actor on itself, it goes to that incarnation, and ends with it. Set on a name or a reference,
    it goes to whoever that means when the time has come; if that is nobody, or another's mailbox that is full, it is a
    dead letter. It outlives the actor that set it.

    Args:
        seconds: 0 or more, on monotonic time.

    Raises:
        ValueError: a negative time.
    """
    return _set_timer(seconds, None, to, None, message)


def send_every(seconds: float, to: To, message: Any) -> Timer:
    """Sends a message again and again, the first after one period.

    Set on a pid, or by an actor on itself, it ends with that incarnation; set on a name or a reference, with the actor
    that set it. Ticks are left out, and counted (`rebeam_timer_ticks_skipped_total`), while the one before waits, the
    mailbox is full or nobody is there, and where the node was late for them.
    """
    return _set_timer(seconds, seconds, to, None, message)


def cast_after(
    seconds: float, to: ActorRef[A], method: Callable[Concatenate[A, P], Any], *args: P.args, **kwargs: P.kwargs
) -> Timer:
    """Casts to a method after a time: the typed form of `send_after`."""
    return _set_timer(seconds, None, to, method.__name__, (args, kwargs))


def cast_every(
    seconds: float, to: ActorRef[A], method: Callable[Concatenate[A, P], Any], *args: P.args, **kwargs: P.kwargs
) -> Timer:
    """Casts to a method again and again: the typed form of `send_every`."""
    return _set_timer(seconds, seconds, to, method.__name__, (args, kwargs))


def _set_timer(seconds: float, every: float | None, to: To, method: str | None, content: Any) -> Timer:
    if not 0 <= seconds < float("inf") or every == 0:
        raise ValueError(f"a timer of {seconds!r} seconds")
    number = _rebeam.send_after(address(to), float(seconds), every=every, method=method, content=content)
    return Timer(_runtime.me().pid, number)


@overload
def cancel(what: Timer) -> float | None: ...
@overload
def cancel(what: Pending[Any]) -> bool: ...
def cancel(what: Timer | Pending[Any]) -> float | bool | None:
    """Takes a timer or a pending call back.

    A call that was not begun is dropped; an `async def` method that has it in hand is cancelled; a plain one finishes,
    and its answer is dropped.

    Returns:
        Of a timer: the seconds it had left; None if it has fired, was cancelled, or never was. A message that is in
        the mailbox stays there. Of a call: whether it was still open.
    """
    if isinstance(what, Pending):
        return what.cancel()
    return _rebeam.cancel_timer(what.maker, what.number)


def watch_dead_letters(watches: bool = True) -> None:
    """Has a `DeadLetter` come to `handle_info` for every message of the node that nobody handles, or no more.

    Those that come while this actor's mailbox is full are not told.
    """
    _rebeam.watch_dead_letters(watches)


def get_state(to: To, timeout: Timeout = ...) -> dict[str, Any]:
    """The attributes of an actor's object, between two messages; of a suspended one, too."""
    state: dict[str, Any] = _rebeam.call_message(address(to), "get_state", None, timeout, is_system=True)
    return state


async def aget_state(to: To, timeout: Timeout = ...) -> dict[str, Any]:
    """`get_state`, to be awaited."""
    state: dict[str, Any] = await _ask_process(to, "get_state", None, timeout)
    return state


def replace_state(
    to: To,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    timeout: Timeout = ...,
) -> dict[str, Any]:
    """Has a function make new attributes of an actor's old ones, in the actor's process. If it raises, so does this,
    and the attributes are as they were, whatever the function has changed within them. (Of what cannot be copied, such
    as a lock, only the reference is restored.)

    Args:
        function: a function at the top level of a module.
    """
    state: dict[str, Any] = _rebeam.call_message(address(to), "replace_state", function, timeout, is_system=True)
    return state


async def areplace_state(
    to: To,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    timeout: Timeout = ...,
) -> dict[str, Any]:
    """`replace_state`, to be awaited."""
    state: dict[str, Any] = await _ask_process(to, "replace_state", function, timeout)
    return state


def suspend(to: To, timeout: Timeout = ...) -> None:
    """Has an actor handle no message until `resume`; they wait in order. It can be asked for its state meanwhile."""
    _rebeam.call_message(address(to), "suspend", None, timeout, is_system=True)


async def asuspend(to: To, timeout: Timeout = ...) -> None:
    """`suspend`, to be awaited."""
    await _ask_process(to, "suspend", None, timeout)


def resume(to: To, timeout: Timeout = ...) -> None:
    """Has a suspended actor go on."""
    _rebeam.call_message(address(to), "resume", None, timeout, is_system=True)


async def aresume(to: To, timeout: Timeout = ...) -> None:
    """`resume`, to be awaited."""
    await _ask_process(to, "resume", None, timeout)


async def _ask_process(to: To, what: str, content: Any, timeout: Timeout) -> Any:
    return await _pending.acall(address(to), what, content, Target(timeout), is_method=False, is_system=True)
