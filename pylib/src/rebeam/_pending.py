"""Calls that are waited for later: by a thread, by a task of an event loop, or by nobody."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rebeam import _rebeam

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from rebeam._ref import Target

R = TypeVar("R")

_callbacks: dict[int, Callable[[int], None]] = {}
"""What is run when the answer to a call has come, by the call's number."""


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

        loop = asyncio.get_running_loop()
        answered = loop.create_future()

        def settle() -> None:
            if not answered.done():
                answered.set_result(None)

        def arrived(_: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        _callbacks[self._call] = arrived
        _rebeam.note_answer(self._call)
        timer = None
        # In virtual time the node itself knows when the time is over.
        if self._deadline is not None and not _rebeam.is_virtual():
            left = max(0.0, self._deadline - _rebeam.clock())
            timer = loop.call_later(left, _rebeam.abandon, self._call)
        try:
            with _Watched(loop):
                if not _rebeam.has_answer(self._call):
                    if not self._is_awaited and _is_own_task():
                        _rebeam.await_answer(self._call)
                    await answered
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            _callbacks.pop(self._call, None)
            if timer is not None:
                timer.cancel()
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
) -> Pending[Any]:
    """Calls without waiting. `content` is a method's arguments, or a message of free form."""
    # A task that a handler has started is not what the handler waits for, as far as anybody knows.
    is_own = is_task and _is_own_task()
    call, left = _rebeam.request(address, method, content, target, is_method=is_method, is_task=is_own)
    return Pending(call, left, is_own)


def _is_own_task() -> bool:
    """Whether the task that runs is the one that handles the message in hand."""
    import asyncio

    message = _rebeam.current()
    return message is not None and _handlers.tasks.get(message.number) is asyncio.current_task()


class _Handlers(threading.local):
    """The tasks that handle messages, by the message's number, of this thread's event loop."""

    def __init__(self) -> None:
        self.tasks: dict[int, asyncio.Task[Any]] = {}


_handlers = _Handlers()


def set_handler(message: int, task: asyncio.Task[Any] | None) -> None:
    """Notes which task handles a message, or that none does any more."""
    if task is None:
        _handlers.tasks.pop(message, None)
    else:
        _handlers.tasks[message] = task


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


def look_for(loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
    """Has an event loop look for answers by a function of its own, for as long as it lives."""
    # Beside those of its tasks that wait for answers already: it never stops looking.
    _watching[loop] = _watching.get(loop, 0) + 1
    for descriptor in _rebeam.watched():
        loop.add_reader(descriptor, look)
