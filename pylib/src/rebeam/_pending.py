"""Waits: for a call that was made without waiting, and, as a task of an event loop, for whatever takes long.

What waits has two forms: `start` blocks its thread, `await astart` only the task. Both are made of the same steps, a
generator of what is asked.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from rebeam import _rebeam
from rebeam._errors import MailboxFull

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from rebeam._ref import Target

R = TypeVar("R")

Steps: TypeAlias = "Generator[_rebeam.Asked, Any, R]"
"""What is asked, step by step, with the answers; and what comes of it."""

_callbacks: dict[int, Callable[[int], None]] = {}
"""What is run when an answer has come, by the number of the call or the question."""


class Pending(Generic[R]):
    """A call that was made without waiting (`ActorRef.request`). It belongs to the process that made it.

    `await pending` waits in an `async def` method, `pending.result()` elsewhere.
    """

    def __init__(self, call: int, left: float | None, is_awaited: bool = False) -> None:
        self._call = call
        self._deadline = None if left is None else _rebeam.clock() + left
        self._is_awaited = is_awaited
        self._value: Any = None
        self._error: BaseException | None = None
        self._is_over = False
        self._is_cancelled = False

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        return self._is_over or _rebeam.has_answer(self._call)

    def cancelled(self) -> bool:
        """Whether it was cancelled here."""
        return self._is_cancelled

    def result(self, timeout: float | None = None) -> R:
        """Waits for the answer. Raises what `ActorRef.call` would, also if it is called again.

        Args:
            timeout: seconds to wait; None: until the call's own deadline, after which it fails with `CallTimeout`.

        Raises:
            TimeoutError: there was no answer within `timeout`; the call goes on.
        """
        if not self._is_over:
            left = None if self._deadline is None else max(0.0, self._deadline - _rebeam.clock())
            is_last = timeout is None or (left is not None and timeout >= left)
            try:
                found = _rebeam.wait_answer(self._call, left if is_last else timeout, is_last=is_last)
            except Exception as error:
                self._settle(None, error)
            else:
                if found is None:
                    raise TimeoutError(f"no answer within {timeout} s")
                self._settle(found[0], None)
        return self._outcome()

    def cancel(self) -> bool:
        """Takes the call back, as `rebeam.cancel`; true if it was still open."""
        if self.done():
            return False
        _rebeam.cancel_call(self._call)
        _callbacks.pop(self._call, None)
        import asyncio

        self._is_cancelled = True
        self._settle(None, asyncio.CancelledError())
        return True

    def __await__(self) -> Generator[Any, None, R]:
        if not self._is_over:
            yield from self._wait().__await__()
        return self._outcome()

    async def _wait(self) -> None:
        import asyncio

        left = None if self._deadline is None else max(0.0, self._deadline - _rebeam.clock())
        if not self._is_awaited and not self.done() and _is_own_task():
            _rebeam.await_answer(self._call)
        try:
            # In virtual time the node itself knows when the time of a call is over.
            await _arrival(self._call, None if _rebeam.is_virtual() else left, lambda: _rebeam.abandon(self._call))
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not self._is_over:
            try:
                self._settle(_rebeam.take_answer(self._call), None)
            except Exception as error:
                self._settle(None, error)

    def __del__(self) -> None:
        if not self._is_over:
            _rebeam.forget_call(self._call)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error, self._is_over = value, error, True

    def _outcome(self) -> R:
        if self._error is not None:
            raise self._error
        result: R = self._value
        return result

    def __reduce__(self) -> Any:
        raise TypeError("a pending call belongs to the process that made it")

    def __repr__(self) -> str:
        return f"<Pending {self._call}{' done' if self.done() else ''}>"


def request(
    address: Any,
    method: str,
    content: Any,
    target: Target,
    *,
    is_method: bool,
    is_task: bool = False,
    is_system: bool = False,
    has_room: bool = False,
) -> Pending[Any]:
    """Calls without waiting. `content` is a method's arguments, or a message of free form."""
    # A task that a handler has started is not what the handler waits for, as far as anybody knows.
    is_own = is_task and _is_own_task()
    call, left = _rebeam.request(
        address,
        method,
        content,
        target,
        is_method=is_method,
        is_task=is_own,
        is_system=is_system,
        has_room=has_room,
    )
    return Pending(call, left, is_own)


async def acall(
    address: Any, method: str, content: Any, target: Target, *, is_method: bool, is_system: bool = False
) -> Any:
    """Calls, and waits for room and for the answer as a task does."""

    def send(target: Target) -> Pending[Any]:
        return request(
            address,
            method,
            content,
            target,
            is_method=is_method,
            is_task=True,
            is_system=is_system,
            has_room=True,
        )

    return await (send(target) if is_system else await when_room(address, method, target, send))


_turns: weakref.WeakValueDictionary[Any, asyncio.Lock] = weakref.WeakValueDictionary()
"""Whose turn it is to wait for room in a mailbox, by event loop and address."""


async def when_room(address: Any, method: str, target: Target, send: Callable[[Target], R]) -> R:
    """Sends once the mailbox has room. The tasks of an event loop that wait for it are let in one by one, in order.

    Raises:
        MailboxFull: there was none for the whole timeout.
    """
    asked, left = _rebeam.room(address, method, target)
    if asked is None and not _turns:
        return send(target)
    import asyncio

    key = (asyncio.get_running_loop(), address)
    turn = _turns.get(key)
    if asked is None and turn is None:
        return send(target)
    if turn is None:
        turn = _turns[key] = asyncio.Lock()
    until = None if left is None else _rebeam.clock() + left
    try:
        async with asyncio.timeout(left):
            await turn.acquire()
    except TimeoutError:
        raise MailboxFull(f"the mailbox of `{address}` is full") from None
    try:
        target = target._replace(timeout=None if until is None else max(0.0, until - _rebeam.clock()))
        asked, _ = _rebeam.room(address, method, target)
        if asked is not None:
            await answer(asked)
        return send(target)
    finally:
        # The next one sends when the loop has looked at what has come: it may be full again.
        key[0].call_soon(turn.release)


def follow(steps: Steps[R], form: str | None) -> R:
    """Takes steps, and waits for each. `form` is the function that the user has called, if it can be awaited."""
    try:
        asked = next(steps)
        while True:
            try:
                found = asked.wait(form)
            except Exception as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(found)
    except StopIteration as end:
        result: R = end.value
        return result


async def afollow(steps: Steps[R]) -> R:
    """The same as a task."""
    try:
        asked = next(steps)
        while True:
            try:
                found = await answer(asked)
            except Exception as error:
                asked = steps.throw(error)
            else:
                asked = steps.send(found)
    except StopIteration as end:
        result: R = end.value
        return result


async def answer(asked: _rebeam.Asked) -> Any:
    """Asks, and waits as a task does. Cancelled, it does not take back what was asked for."""
    import asyncio

    asked.begin(_is_own_task())
    try:
        await _arrival(asked.number, asked.time_left)
    except asyncio.CancelledError:
        asked.cancel()
        raise
    return asked.take()


async def _arrival(number: int, seconds: float | None, give_up: Callable[[], None] | None = None) -> None:
    """Waits until the answer with this number has come.

    Args:
        seconds: until the time is over; None: no limit.
        give_up: what is then done to hurry the answer. Default: there will be none, and the wait ends.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    arrived = loop.create_future()

    def settle() -> None:
        if not arrived.done():
            arrived.set_result(None)

    def wake(_: int) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    _callbacks[number] = wake
    _rebeam.note_answer(number)
    timer = None if seconds is None else _Alarm(loop, _rebeam.clock() + seconds, give_up or settle)
    try:
        with _Watched(loop):
            if not _rebeam.has_answer(number):
                await arrived
    finally:
        _callbacks.pop(number, None)
        if timer is not None:
            timer.cancel()


class _Alarm:
    """Has something run on an event loop at a time of the node's clock, which may be virtual."""

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float, run: Callable[[], None]) -> None:
        self._loop, self._when, self._run = loop, when, run
        self._look()

    def _look(self) -> None:
        left = self._when - _rebeam.clock()
        if left <= 0:
            self._run()
        else:
            self._handle = self._loop.call_later(_TICK if _rebeam.is_virtual() else left, self._look)

    def cancel(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.cancel()


_TICK = 0.01
"""Seconds after which an event loop looks what virtual time it is."""

_warned: set[str] = set()

_BETTER = {"result": "`await` the pending call", "stream": "iterate with `async for`"}
"""What to do instead of what has no form of that name."""


def warn_of_blocking(form: str) -> None:
    """Warns of a function that blocks the event loop it was called on; once of each."""
    if form in _warned:
        return
    _warned.add(form)
    import os
    import sys
    import warnings

    package, level, frame = os.path.dirname(__file__), 1, sys._getframe(0)
    while frame.f_back is not None and os.path.dirname(frame.f_code.co_filename) == package:
        level, frame = level + 1, frame.f_back
    better = _BETTER.get(form) or f"`await` its form `a{form}`"
    text = f"`{form}` blocks this event loop, on which nothing else runs meanwhile: {better} instead"
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def _is_own_task() -> bool:
    """Whether the task that runs is the one that handles the message in hand."""
    import asyncio

    message = _rebeam.current()
    return message is not None and _own.handlers.get(message.number) is asyncio.current_task()


class _Own(threading.local):
    """What belongs to this thread's event loop.

    Attributes:
        handlers: the tasks that handle messages, by the message's number.
        receivers: what tasks wait for, and what wakes each.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, asyncio.Task[Any]] = {}
        self.receivers: list[tuple[Any, Callable[[], None]]] = []


_own = _Own()


def set_handler(message: int, task: asyncio.Task[Any] | None) -> None:
    """Notes which task handles a message, or that none does any more."""
    if task is None:
        _own.handlers.pop(message, None)
    else:
        _own.handlers[message] = task


def on_answer(call: int, callback: Callable[[int], None]) -> None:
    """Has a callback run, in whichever thread reads, when the answer to a call has come."""
    _callbacks[call] = callback
    _rebeam.note_answer(call)
    if _rebeam.has_answer(call) and _callbacks.pop(call, None) is not None:
        callback(call)


def resolve(calls: list[int]) -> None:
    """Runs the callbacks of calls whose answers have come."""
    for call in calls:
        callback = _callbacks.pop(call, None)
        if callback is not None:
            callback(call)


_watching: dict[asyncio.AbstractEventLoop, int] = {}
"""Event loops that look for answers, and how many tasks of each wait for one."""


class _Watched:
    """Has an event loop look for answers as long as a task of it waits for one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        count = _watching.get(self._loop, 0)
        _watching[self._loop] = count + 1
        if count == 0:
            for descriptor in _rebeam.watched():
                self._loop.add_reader(descriptor, _look)

    def __exit__(self, *_: object) -> None:
        _watching[self._loop] -= 1
        if _watching[self._loop] == 0:
            del _watching[self._loop]
            for descriptor in _rebeam.watched():
                self._loop.remove_reader(descriptor)


def _look() -> None:
    resolve(_rebeam.look())
    look_for_messages()


async def areceive(match: Any, seconds: float | None) -> tuple[Any] | None:
    """Takes the first message that fits, as a task does; None if none has come in time."""
    import asyncio

    loop = asyncio.get_running_loop()
    until = None if seconds is None else _rebeam.clock() + seconds
    is_first = True
    with _Watched(loop):
        while True:
            # Those that have waited for longer have their turn.
            if not (is_first and _own.receivers):
                resolve(_rebeam.look())
                found = _rebeam.receive(match, None, waits=False)
                if found is not None:
                    return found
            is_first = False
            if until is not None and _rebeam.clock() >= until:
                return None
            await _message_for(loop, match, until)


async def _message_for(loop: asyncio.AbstractEventLoop, match: Any, until: float | None) -> None:
    """Waits until there may be a message that fits, or the time is over. It is taken by nobody but the task itself: one
    that is cancelled has taken none."""
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    receiver = (match, wake)
    _own.receivers.append(receiver)
    alarm = None if until is None else _Alarm(loop, until, wake)
    try:
        look_for_messages()
        await woken
    finally:
        _own.receivers.remove(receiver)
        if alarm is not None:
            alarm.cancel()


def look_for_messages() -> bool:
    """Wakes the tasks that wait for a message, if there is one that fits; says whether any was."""
    is_any = False
    for match, wake in list(_own.receivers):
        if _rebeam.receive(match, None, waits=False, takes=False) is not None:
            wake()
            is_any = True
    return is_any


def look_for(loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
    """Has an event loop look for answers by a function of its own, for as long as it lives."""
    # Beside those of its tasks that wait for answers already: it never stops looking.
    _watching[loop] = _watching.get(loop, 0) + 1
    for descriptor in _rebeam.watched():
        loop.add_reader(descriptor, look)
