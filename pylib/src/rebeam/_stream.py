"""Streamed answers: a generator in one actor, iterated over by another, no further than its values are wanted."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rebeam import _pending, _rebeam
from rebeam._errors import ActorDied, BadCall, NoProc
from rebeam._ref import Pid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from rebeam._ref import ActorRef

R = TypeVar("R")

_MOST = 64
"""Values that are sent at once, at most."""

_PATIENCE = 0.01
"""Seconds after which those that are there are sent, though more are wanted."""


class Stream(Generic[R]):
    """What a method of another actor yields. Iterate over it once, with `for` or `async for`.

    The generator runs in its actor, between other messages, for one batch of values at a time. When the iteration is
    left early, or the actor that iterates ends, the generator is closed. If the other actor ends, the iteration raises
    as a call would.
    """

    def __init__(self, ref: ActorRef[Any], method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ref = ref
        self._content = (method, args, kwargs)

    def __iter__(self) -> Iterator[R]:
        timeout = self._ref._target.timeout
        pid, number = _rebeam.call_message(self._ref._address, "stream_open", self._content, timeout)
        wanted, is_over = 1, False
        try:
            while not is_over:
                try:
                    batch = _rebeam.call_message(pid, "stream_next", (number, wanted), timeout)
                except (ActorDied, NoProc):
                    is_over = True
                    raise
                is_over = batch.is_over
                yield from batch.values
                if batch.error is not None:
                    raise batch.error
                wanted = min(wanted * 2, _MOST)
        finally:
            if not is_over:
                _rebeam.send_message(pid, "stream_close", number, timeout, has_room=True)

    async def __aiter__(self) -> AsyncIterator[R]:
        target = self._ref._target

        def ask(to: Any, method: str, content: Any) -> Any:
            return _pending.acall(to, method, content, target, is_method=False)

        pid, number = await ask(self._ref._address, "stream_open", self._content)
        wanted, is_over = 1, False
        try:
            while not is_over:
                try:
                    batch = await ask(pid, "stream_next", (number, wanted))
                except (ActorDied, NoProc):
                    is_over = True
                    raise
                is_over = batch.is_over
                for value in batch.values:
                    yield value
                if batch.error is not None:
                    raise batch.error
                wanted = min(wanted * 2, _MOST)
        finally:
            if not is_over:
                _rebeam.send_message(pid, "stream_close", number, target.timeout, has_room=True)


class Batch(NamedTuple):
    """Some values of a stream.

    Attributes:
        error: what the generator raised after them, if its method declares that to be an answer.
    """

    values: list[Any]
    is_over: bool
    error: BaseException | None = None


class Streams:
    """The generators of one actor that somebody iterates over."""

    def __init__(self, resolve: Callable[[str], Callable[..., Any]]) -> None:
        self._resolve = resolve
        self._open: dict[int, tuple[Any, int, tuple[type[BaseException], ...]]] = {}
        self._next = 0

    def handle(self, request: str, content: Any) -> Any:
        """Does what a `Stream` asks for; gives a coroutine where the generator is asynchronous."""
        if request == "stream_open":
            return self._start(*content)
        if request == "stream_next":
            return self._take(*content)
        return self.close(content)

    def of(self, monitor: int) -> int | None:
        """The stream of one who iterated, by the monitor."""
        return next((number for number, (_, watched, _) in self._open.items() if watched == monitor), None)

    def close(self, number: int) -> Any:
        """Closes a generator; gives a coroutine where that is asynchronous."""
        generator = self._forget(number)
        if inspect.isasyncgen(generator):
            return _close_async(generator)
        if generator is not None:
            generator.close()
        return None

    def _start(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Pid, int]:
        from rebeam import _runtime

        function = self._resolve(method)
        if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise BadCall(f"`{method}` is no generator: call it")
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise BadCall(f"{method}(): {error}") from None
        generator = function(*args, **kwargs)
        caller = _rebeam.caller()
        monitor = _rebeam.monitor(Pid(*caller["pid"])) if caller and caller["pid"] else 0
        self._next += 1
        self._open[self._next] = (generator, monitor, getattr(function, "__rebeam_raises__", ()))
        return _runtime.me().pid, self._next

    def _take(self, number: int, wanted: int) -> Any:
        if number not in self._open:
            return Batch([], True, BadCall("the stream is over: its actor has gone on in a new process"))
        generator, _, answers = self._open[number]
        if inspect.isasyncgen(generator):
            return self._take_async(number, generator, wanted, answers)
        values: list[Any] = []
        until = time.monotonic() + _PATIENCE
        try:
            while len(values) < wanted and (not values or time.monotonic() < until):
                values.append(next(generator))
        except StopIteration:
            return self._last(number, values)
        except answers as error:
            return self._last(number, values, error)
        return Batch(values, False)

    async def _take_async(
        self, number: int, generator: AsyncIterator[Any], wanted: int, answers: tuple[type[BaseException], ...]
    ) -> Batch:
        values: list[Any] = []
        until = time.monotonic() + _PATIENCE
        try:
            while len(values) < wanted and (not values or time.monotonic() < until):
                values.append(await anext(generator))
        except StopAsyncIteration:
            return self._last(number, values)
        except answers as error:
            return self._last(number, values, error)
        return Batch(values, False)

    def _last(self, number: int, values: list[Any], error: BaseException | None = None) -> Batch:
        self._forget(number)
        return Batch(values, True, error)

    def _forget(self, number: int) -> Any:
        generator, monitor, _ = self._open.pop(number, (None, 0, ()))
        if monitor:
            _rebeam.demonitor(monitor, True)
        return generator


async def _close_async(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()
