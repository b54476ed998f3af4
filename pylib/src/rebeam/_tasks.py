"""Functions that run in a process of their own: tasks."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from rebeam import _errors, _functions, _pending, _process
from rebeam._actor import Actor
from rebeam._ref import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rebeam._ref import ActorRef

R = TypeVar("R")
P = ParamSpec("P")


class _TaskActor(Actor):
    """Runs one function and ends: with its value as the answer, or with its exception."""

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import inspect

        result = function(*args, **kwargs)
        if inspect.iscoroutine(result):
            from rebeam import _loop

            result = _loop.run(result)
        raise _errors.Stop(reply=result)


class Task(Generic[R]):
    """A function that runs in a process of its own, for the actor that started it.

    Attributes:
        ref: the actor that runs it.
    """

    def __init__(self, ref: ActorRef[Any], pending: _pending.Pending[R]) -> None:
        self.ref = ref
        self._pending = pending

    def result(self, timeout: float | None = 5.0) -> R:
        """Waits for its value; raises what it raised, or `ActorDied`.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            TimeoutError: it took longer. It is killed, after 0.3 s in which it writes down where it is, and a late
                value is dropped; `poll` only looks.
        """
        try:
            return self._pending.result(timeout)
        except TimeoutError:
            if self._pending.done():
                # The function's own.
                raise
            self._give_up()
            raise TimeoutError(f"the task took longer than {timeout} s") from None

    def poll(self, timeout: float = 0.0) -> Outcome[R] | None:
        """How it ended, or None if it has not within this many seconds."""
        if self._pending.cancelled():
            return Outcome(None, asyncio.CancelledError())
        try:
            return Outcome(self._pending.result(timeout), None)
        except Exception as error:
            is_over = not isinstance(error, TimeoutError) or self._pending.done()
            return Outcome(None, error) if is_over else None

    def shutdown(self, timeout: float = 5.0) -> Outcome[R] | None:
        """Stops it within this many seconds, and gives how it had ended, if it had; else None."""
        found = None if self._pending.cancelled() else self.poll()
        if found is None:
            self._pending.cancel()
            try:
                _process.unlink(self.ref)
                _process.kill(self.ref) if timeout <= 0 else _process.exit(self.ref, "shutdown")
            except _errors.NoProc:
                pass
        return found

    def _give_up(self) -> None:
        """Has it killed, since it takes too long."""
        self._pending.cancel()
        with contextlib.suppress(_errors.NoProc):
            _process.unlink(self.ref)
            _process.kill_hung(self.ref)

    def done(self) -> bool:
        """Whether it has ended."""
        return self._pending.done()

    def __await__(self) -> Generator[Any, None, R]:
        try:
            return (yield from self._pending.__await__())
        except BaseException:
            # A cancelled wait, by `asyncio.wait_for` or whomever, stops it, as `result` does when its time is over.
            if self._pending.cancelled():
                self._give_up()
            raise


class Outcome(NamedTuple, Generic[R]):
    """How a task ended.

    Attributes:
        value: what it returned.
        error: what it raised, or the `ActorDied` of its process; None if it returned.
    """

    value: R | None
    error: BaseException | None


def task(
    function: Callable[P, R], /, *args: Any, link: bool = True, supervisor: str | None = None, **kwargs: Any
) -> Task[R]:
    """Starts a function in a process of its own, for this actor, which may wait for its value or not.

    Args:
        function: at the top level of a module.
        args, kwargs: its arguments.
        link: whether its failure ends this actor, too (Elixir's `Task.async`), unless that traps exits. False is
            `Task.Supervisor.async_nolink`.
        supervisor: the name of a `DynamicSupervisor` that it is to be a child of. Default: the node's own.
    """
    ref = _pending.follow(_start(function, link, supervisor), "task")
    return _begin(ref, function, args, kwargs)


async def atask(
    function: Callable[P, R], /, *args: Any, link: bool = True, supervisor: str | None = None, **kwargs: Any
) -> Task[R]:
    """`task`, to be awaited until its process runs; what it gives is awaited for the value."""
    starting = asyncio.ensure_future(_pending.afollow(_start(function, link, supervisor)))
    try:
        ref = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # It may be too late not to start it.
        starting.add_done_callback(_forget_started)
        raise
    return _begin(ref, function, args, kwargs)


def _forget_started(starting: asyncio.Future[ActorRef[Any]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        with contextlib.suppress(_errors.NoProc):
            _process.unlink(starting.result())
            _process.kill(starting.result())


def _start(function: Callable[..., Any], link: bool, supervisor: str | None) -> _pending.Steps[ActorRef[Any]]:
    from rebeam import _spec

    spec = _spec.child(_TaskActor, restart="temporary", id=getattr(function, "__name__", "task"))
    if supervisor is None:
        return (yield from _functions.spawning(spec, (), link, {}))
    ref = yield from _functions.starting(spec, supervisor)
    if link:
        _process.link(ref)
    return ref


def _begin(ref: ActorRef[Any], function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task[R]:
    pending = _pending.request(ref._address, "run", ((function, args, kwargs), {}), Target(None), is_method=True)
    return Task(ref, pending)
