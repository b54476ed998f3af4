"""The event loop of an actor with `async def` methods: takes its mail, and runs handlers beside each other."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from rebeam import _pending, _rebeam, _runtime
from rebeam._errors import ActorExit
from rebeam._server import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_in_hand: contextvars.ContextVar[Any] = contextvars.ContextVar("rebeam_message", default=None)

_own = threading.local()
"""The event loop of this actor: of its process's main thread, or, in tests, of its thread."""

_AT_ONCE = 64
"""Messages that are taken before other tasks of the loop get their turn."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end, on the one event loop of this actor."""
    try:
        if not hasattr(_own, "runner"):
            with _runtime.no_exit:
                _own.runner = asyncio.Runner()
                _own.runner.get_loop()
        return _own.runner.run(coroutine)
    finally:
        # An exit may have come before it began.
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


def close() -> None:
    """Closes the loop of an actor that is a thread."""
    if hasattr(_own, "runner"):
        _own.runner.close()
        del _own.runner


def serve(
    handlers: _rebeam.Handlers, receive: Callable[[str, Any], Any], concurrency: int
) -> tuple[str, str, str | None]:
    """Handles messages, up to so many at once, until a stop is ordered; raises what a handler ends the actor with."""
    _rebeam.set_context_variable(_in_hand)
    serving = _Serving(handlers, receive, concurrency)
    run(serving.run())
    if serving.error is not None:
        raise serving.error
    return serving.reason


class _Serving:
    def __init__(self, handlers: _rebeam.Handlers, receive: Callable[[str, Any], Any], concurrency: int) -> None:
        self._handlers = handlers
        self._receive = receive
        self._concurrency = concurrency
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._is_stopping = False
        self._comes_to_rest = False
        self.reason: tuple[str, str, str | None] = ("normal", "", None)
        self.error: BaseException | None = None

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._loop.set_exception_handler(self._on_stray_error)
        _pending.look_for(self._loop, self._look)
        self._loop.call_soon(self._look)
        await self._over
        # What is still in hand ends with the actor; its clean-up gets a moment.
        if self._tasks:
            left = set(self._tasks.values())
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=0.2)

    def _look(self) -> None:
        try:
            _pending.resolve(_rebeam.look())
            for number in _rebeam.take_cancelled():
                if number in self._tasks:
                    self._tasks[number].cancel()
            self._take_mail()
        except BaseException as error:
            self._fail(error)
        if _rebeam.is_virtual() and not self._comes_to_rest:
            self._comes_to_rest = True
            self._loop.call_soon(self._rest)

    def _rest(self) -> None:
        """Says that nothing is left to do, once that is so: for tests, which wait for it."""
        ready: Any = getattr(self._loop, "_ready", ())
        if ready:
            self._loop.call_soon(self._rest)
            return
        self._comes_to_rest = False
        if not self._over.done():
            _rebeam.rest()

    def _take_mail(self) -> None:
        for _ in range(_AT_ONCE):
            if self._over.done() or self._is_stopping:
                return None
            # A plain method is no part of this loop: it may run one of its own.
            asyncio._set_running_loop(None)
            try:
                taken = self._handlers.step(len(self._tasks) >= self._concurrency)
            finally:
                asyncio._set_running_loop(self._loop)
            if taken is None:
                _rebeam.settle()
                return None
            if taken is not True and len(taken) == 3:
                self._is_stopping = True
                self.reason = taken
                return self._end_if_idle()
            self._wait_idly(_rebeam.take_idle())
            if taken is not True:
                self._begin(*taken)
        self._loop.call_soon(self._look)
        return None

    def _begin(self, message: _rebeam.Message, coroutine: Coroutine[Any, Any, Any]) -> None:
        context = contextvars.copy_context()
        context.run(_in_hand.set, message)
        task = self._loop.create_task(coroutine, context=context)
        self._tasks[message.number] = task
        _pending.set_handler(message.number, task)
        task.add_done_callback(functools.partial(self._end, message))

    def _end(self, message: _rebeam.Message, task: asyncio.Task[Any]) -> None:
        del self._tasks[message.number]
        _pending.set_handler(message.number, None)
        if self._over.done():
            return None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        try:
            self._handlers.finish(message, None if error else task.result(), error)
        except BaseException as fatal:
            return self._fail(fatal)
        if self._is_stopping:
            self._end_if_idle()
        else:
            self._look()
        return None

    def _wait_idly(self, seconds: float | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if seconds is None else self._loop.call_later(seconds, self._on_idle)

    def _on_idle(self) -> None:
        try:
            # Mail that has come already is handled before the actor is told that none came (GEN-016).
            waiting = self._idle
            _rebeam.catch_up_now()
            self._take_mail()
            if self._idle is not waiting or self._is_stopping or self._over.done():
                return None
            result = self._receive("handle_info", TIMEOUT)
        except BaseException as error:
            return self._fail(error)
        if asyncio.iscoroutine(result):
            task = self._loop.create_task(result)
            task.add_done_callback(self._on_idle_end)
        else:
            self._look()
        return None

    def _on_idle_end(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
        else:
            self._look()

    def _end_if_idle(self) -> None:
        if not self._tasks and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self._over.done():
            self.error = error
            self._over.set_result(None)

    def _on_stray_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exit signal may hit the loop itself, which would swallow it."""
        if isinstance(context.get("exception"), ActorExit):
            self._fail(context["exception"])
        else:
            loop.default_exception_handler(context)
