"""The event loop of an actor with `async def` methods: takes its mail, and runs handlers beside each other.

A task that fails while nobody looks is reported, whether or not anybody holds it. When the actor is stopped, its
handlers have half of the time that there is; then they are cancelled. What is left on the loop is cancelled at the
actor's end, as `asyncio.run` does.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from rebeam import _pending, _rebeam, _runtime
from rebeam._errors import ActorExit
from rebeam._server import TIMEOUT, is_stop_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

R = TypeVar("R")

_in_hand: contextvars.ContextVar[Any] = contextvars.ContextVar("rebeam_message", default=None)

_own = threading.local()
"""The event loop of this actor: of its process's main thread, or, in tests, of its thread."""

_UNSEEN = 1.0
"""Seconds after which a task's failure is reported if nobody has looked at it."""

_AGAIN = 0.2
"""Seconds after which handlers that have begun meanwhile are cancelled, too."""

_AT_ONCE = 64
"""Messages that are taken before other tasks of the loop get their turn."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end, on the one event loop of this actor."""
    try:
        if not hasattr(_own, "runner"):
            with _runtime.no_exit:
                _own.runner = asyncio.Runner()
                _own.runner.get_loop().set_task_factory(_make_task)
                _own.unseen, _own.background, _own.serving = set(), set(), None
        return _own.runner.run(coroutine)
    except ActorExit:
        # The loop was left wherever it was: what runs on it unwinds, too.
        finish()
        raise
    finally:
        # An exit may have come before it began.
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


def finish() -> None:
    """Cancels what is left on the loop at the actor's end, lets it clean up, and reports what has failed unseen."""
    if not hasattr(_own, "runner"):
        return
    loop: asyncio.AbstractEventLoop = _own.runner.get_loop()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        # Of an actor that is a process the supervisor knows when its time is over.
        loop.run_until_complete(asyncio.wait(left, timeout=1.0 if _rebeam.is_virtual() else None))
    for task in [*_own.unseen, *left]:
        _report(task)
    loop.run_until_complete(loop.shutdown_asyncgens())


def tasks() -> list[str]:
    """The names of what runs on the loop of this actor, handlers left out."""
    if not hasattr(_own, "runner"):
        return []
    return [task.get_name() for task in asyncio.all_tasks(_own.runner.get_loop())]


def default_threads() -> set[threading.Thread]:
    """The threads of `asyncio.to_thread` and of the loop itself, if none of them has anything to do."""
    executor = getattr(_own.runner.get_loop(), "_default_executor", None) if hasattr(_own, "runner") else None
    threads: set[threading.Thread] = set(getattr(executor, "_threads", ()))
    idle = getattr(getattr(executor, "_idle_semaphore", None), "_value", 0)
    return threads if idle >= len(threads) else set()


def close() -> None:
    """Closes the loop of an actor that is a thread."""
    if hasattr(_own, "runner"):
        finish()
        _own.runner.close()
        del _own.runner


def background(coroutine: Coroutine[Any, Any, R], *, name: str | None = None) -> asyncio.Task[R]:
    """Runs a coroutine beside the handlers of this actor. If it fails, the actor ends with that.

    It is held for as long as it runs, and cancelled at the actor's end. A task of `asyncio.create_task` that fails is
    only reported.

    Args:
        coroutine: what to run; `async def init` may start it.
        name: of the task.

    Raises:
        RuntimeError: no event loop is running.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _own.background.add(task)
    task.add_done_callback(_on_background_end)
    return task


def _on_background_end(task: asyncio.Task[Any]) -> None:
    _own.background.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        # One that has failed before the actor serves ends it when it does.
        if _own.serving is None:
            _own.failed = error
        else:
            _own.serving._fail(error)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task whose failure is looked after."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    task.add_done_callback(_look_after)
    return task


def _look_after(task: asyncio.Task[Any]) -> None:
    # Whoever awaits it takes its exception, and with that this mark away.
    if not task.cancelled() and task._log_traceback:
        _own.unseen.add(task)
        task.get_loop().call_later(_UNSEEN, _report, task)


def _report(task: asyncio.Task[Any]) -> None:
    """Reports the failure of a task, if nobody has looked at it."""
    _own.unseen.discard(task)
    if task.done() and not task.cancelled() and task._log_traceback:
        message = f"the task {task.get_name()!r} has failed, and nobody has looked at it"
        task.get_loop().call_exception_handler({"message": message, "exception": task.exception(), "task": task})


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
        self._last_call: asyncio.TimerHandle | None = None
        self._cut: set[int] = set()
        self._comes_to_rest = False
        self.reason: tuple[str, str, str | None] = ("normal", "", None)
        self.error: BaseException | None = None

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._loop.set_exception_handler(self._on_stray_error)
        _pending.look_for(self._loop, self._look)
        self._loop.call_soon(self._look)
        idle_left = _rebeam.take_idle_left()
        if idle_left is not None:
            self._patience = idle_left[1]
            self._idle = self._loop.call_later(idle_left[0], self._on_idle)
        _own.serving = self
        if hasattr(_own, "failed"):
            self._fail(_own.failed)
        await self._over
        if self._last_call is not None:
            self._last_call.cancel()
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
            left = _rebeam.take_time_left()
            if left is not None:
                # In virtual time nothing on this loop would come to pass by itself.
                self._cut_in(0 if _rebeam.is_virtual() else left / 2)
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
            self._wait_idly()
            if _pending.look_for_messages():
                # They take what fits them before a handler does.
                break
            # A plain method is no part of this loop: it may run one of its own.
            asyncio._set_running_loop(None)
            try:
                taken = self._handlers.step(len(self._tasks) >= self._concurrency)
            finally:
                asyncio._set_running_loop(self._loop)
            if taken is None:
                _rebeam.settle()
                return None
            if taken is False:
                # It was for the process, not for the actor.
                continue
            if taken is not True and len(taken) == 3:
                self._is_stopping = True
                self.reason = taken
                if taken[0] == "move":
                    self._cut_in(int(taken[1]) / 1000)
                if self._idle is not None:
                    _rebeam.set_idle_left(self._idle.when() - self._loop.time(), self._patience)
                return self._end_if_idle()
            self._wait_no_more()
            if taken is not True:
                self._begin(*taken)
        self._loop.call_soon(self._look)
        return None

    def _begin(self, message: _rebeam.Message, coroutine: Coroutine[Any, Any, Any]) -> None:
        context = contextvars.copy_context()
        context.run(_in_hand.set, message)
        task = asyncio.Task(coroutine, loop=self._loop, context=context)
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
            if not (task.cancelled() and message.number in self._cut):
                self._handlers.finish(message, None if error else task.result(), error)
            elif self.reason[0] == "move":
                self._handlers.cut(message, _runtime.me().path)
                _tell_cut(message.method)
            # Else it stays in hand: it ends with the actor, and is told so.
        except BaseException as fatal:
            return self._fail(fatal)
        if self._is_stopping:
            self._end_if_idle()
        else:
            self._look()
        return None

    def _cut_in(self, seconds: float) -> None:
        """Cancels the handlers that are left by then."""
        if self._last_call is not None:
            self._last_call.cancel()
        self._last_call = self._loop.call_later(seconds, self._cut_handlers)

    def _cut_handlers(self) -> None:
        for number, task in self._tasks.items():
            self._cut.add(number)
            task.cancel()
        self._cut_in(_AGAIN)

    def _wait_idly(self) -> None:
        """Has the actor be told if nothing comes for so long, should a handler have asked for that."""
        seconds = _rebeam.take_idle()
        if seconds is not None:
            self._wait_no_more()
            self._patience = seconds
            self._idle = self._loop.call_later(seconds, self._on_idle)

    def _wait_no_more(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _on_idle(self) -> None:
        try:
            # Mail that has come already is handled before the actor is told that none came (GEN-016).
            waiting = self._idle
            _rebeam.catch_up_now()
            if _pending.look_for_messages():
                self._idle = self._loop.call_later(self._patience, self._on_idle)
                return self._look()
            self._take_mail()
            if self._idle is not waiting or self._is_stopping or self._over.done():
                return None
            result = self._receive("handle_info", TIMEOUT)
        except BaseException as error:
            return self._stop_idle(error)
        if asyncio.iscoroutine(result):
            task = self._loop.create_task(result)
            task.add_done_callback(self._on_idle_end)
        else:
            self._look()
        return None

    def _on_idle_end(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._stop_idle(error)
        else:
            self._look()

    def _stop_idle(self, error: BaseException) -> None:
        """Ends the actor with what was raised as no message came, unless one has come and it only wants to stop."""
        if not is_stop_refused(error):
            return self._fail(error)
        self._idle = self._loop.call_later(self._patience, self._on_idle)
        return self._look()

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


def _tell_cut(method: str) -> None:
    import logging

    logging.getLogger("rebeam").warning(
        "`%s` was cancelled: it had not ended when the actor was to move to new code", method
    )
