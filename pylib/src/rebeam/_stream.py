"""Streamed answers: a generator in one actor, iterated over by another, no further than its values are wanted."""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from rebeam import _pending, _rebeam
from rebeam._errors import ActorDied, BadCall, NoProc, described
from rebeam._failure import format_traceback, kind_of, message_of
from rebeam._ref import Pid

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator

    from rebeam._ref import ActorRef

R = TypeVar("R")

Key: TypeAlias = tuple[int, int]
"""A stream of an actor, across its processes: which of them, and a number."""

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
        stream = self._open()
        wanted, is_over = 1, False
        try:
            while not is_over:
                try:
                    batch = self._more(stream, wanted)
                except (ActorDied, NoProc):
                    is_over = True
                    raise
                is_over = batch.is_over
                yield from batch.values
                if batch.error is not None:
                    raise batch.error
                wanted = min(wanted * 2, _MOST)
        finally:
            self._close(stream, is_over)

    async def __aiter__(self) -> AsyncIterator[R]:
        stream = await self._aopen()
        wanted, is_over = 1, False
        try:
            while not is_over:
                try:
                    batch = await self._amore(stream, wanted)
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
            self._close(stream, is_over)

    def _open(self) -> Any:
        """Has the generator made; gives what the others need."""
        return _rebeam.call_message(self._ref._address, "stream_open", self._content, self._ref._target.timeout)

    def _more(self, stream: Any, wanted: int) -> Batch:
        pid, key = stream
        batch: Batch = _rebeam.call_message(pid, "stream_next", (key, wanted), self._ref._target.timeout)
        return batch

    async def _aopen(self) -> Any:
        return await self._ask(self._ref._address, "stream_open", self._content)

    async def _amore(self, stream: Any, wanted: int) -> Batch:
        pid, key = stream
        batch: Batch = await self._ask(pid, "stream_next", (key, wanted))
        return batch

    async def _ask(self, to: Any, method: str, content: Any) -> Any:
        return await _pending.acall(to, method, content, self._ref._target, is_method=False)

    def _close(self, stream: Any, is_over: bool) -> None:
        """Has the generator closed, unless it is over; waits for nothing."""
        pid, key = stream
        if not is_over:
            _rebeam.send_message(pid, "stream_close", key, self._ref._target.timeout, has_room=True)


class Batch(NamedTuple):
    """Some values of a stream.

    Attributes:
        error: what the generator raised after them, if its method declares that to be an answer.
    """

    values: list[Any]
    is_over: bool
    error: BaseException | None = None


def plain(batch: Batch) -> tuple[Any, ...]:
    """A batch as plain data, for a client outside the tree."""
    error = batch.error and (kind_of(batch.error), message_of(batch.error), format_traceback(batch.error))
    return batch.values, batch.is_over, error


def from_plain(values: list[Any], is_over: bool, error: tuple[str, str, str] | None) -> Batch:
    """The batch that was made so."""
    return Batch(values, is_over, error and described(*error))


def is_request(request: str, content: Any) -> bool:
    """Whether this is what a `Stream` asks for: what comes from outside the tree need not be."""
    match request, content:
        case "stream_open", (str(), list() | tuple(), dict()):
            return True
        case "stream_open", ((str(), list() | tuple(), dict()), (int(), int(), int())):
            return True
        case "stream_next", ((int(), int()), int()):
            return True
        case "stream_close", (int(), int()):
            return True
    return False


class Streams:
    """The generators of one actor that somebody iterates over."""

    def __init__(self, resolve: Callable[[str], Callable[..., Any]]) -> None:
        self._resolve = resolve
        self._open: dict[Key, tuple[Any, int, tuple[type[BaseException], ...]]] = {}
        self._last_number = 0
        _own.streams = self

    def handle(self, request: str, content: Any) -> Any:
        """Does what a `Stream` asks for, if `is_request` says that it is that; gives a coroutine where the generator is
        asynchronous."""
        caller = _rebeam.caller()
        is_plain = caller is not None and caller["is_plain"]
        if request == "stream_open":
            if len(content) == 2:
                (method, args, kwargs), client = content
            else:
                method, args, kwargs = content
                client = caller["pid"] if caller is not None else None
            return self._start(method, args, kwargs, client)
        if request == "stream_close":
            return self.close(content)
        batch = self._take(*content)
        if not is_plain:
            return batch
        return plain(batch) if isinstance(batch, Batch) else _plain_later(batch)

    def of(self, monitor: int) -> Key | None:
        """The stream of one who iterated, by the monitor."""
        return next((key for key, (_, watched, _) in self._open.items() if watched == monitor), None)

    def close_all(self) -> None:
        """Closes all generators, since the actor goes on in another process."""
        from rebeam import _boot

        for key in list(self._open):
            with contextlib.suppress(Exception):
                _boot.awaited(self.close(key))

    def close(self, key: Key) -> Any:
        """Closes a generator; gives a coroutine where that is asynchronous."""
        generator = self._forget(key)
        if inspect.isasyncgen(generator):
            return _close_async(generator)
        if generator is not None:
            generator.close()
        return None

    def _start(
        self, method: str, args: Any, kwargs: dict[str, Any], client: tuple[int, int, int] | None
    ) -> tuple[tuple[int, int, int], Key]:
        """Makes a generator; it is closed when its client ends."""
        from rebeam import _runtime

        function = self._resolve(method)
        if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
            raise BadCall(f"`{method}` is no generator: call it")
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise BadCall(f"{method}(): {error}") from None
        generator = function(*args, **kwargs)
        monitor = _rebeam.monitor(Pid(*client)) if client else 0
        self._last_number += 1
        key = (os.getpid(), self._last_number)
        self._open[key] = (generator, monitor, getattr(function, "__rebeam_raises__", ()))
        return _runtime.me().pid, key

    def _take(self, key: Key, wanted: int) -> Any:
        if key not in self._open:
            return Batch([], True, BadCall("the stream was closed, or its actor has gone on in a new process"))
        generator, _, answers = self._open[key]
        if inspect.isasyncgen(generator):
            return self._take_async(key, generator, wanted, answers)
        values: list[Any] = []
        until = time.monotonic() + _PATIENCE
        try:
            while len(values) < wanted and (not values or time.monotonic() < until):
                values.append(next(generator))
        except StopIteration:
            return self._last(key, values)
        except answers as error:
            return self._last(key, values, error)
        return Batch(values, False)

    async def _take_async(
        self, key: Key, generator: AsyncIterator[Any], wanted: int, answers: tuple[type[BaseException], ...]
    ) -> Batch:
        values: list[Any] = []
        until = time.monotonic() + _PATIENCE
        try:
            while len(values) < wanted and (not values or time.monotonic() < until):
                values.append(await anext(generator))
        except StopAsyncIteration:
            return self._last(key, values)
        except answers as error:
            return self._last(key, values, error)
        return Batch(values, False)

    def _last(self, key: Key, values: list[Any], error: BaseException | None = None) -> Batch:
        self._forget(key)
        return Batch(values, True, error)

    def _forget(self, key: Key) -> Any:
        generator, monitor, _ = self._open.pop(key, (None, 0, ()))
        if monitor:
            _rebeam.demonitor(monitor, True)
        return generator


async def _plain_later(batch: Awaitable[Batch]) -> tuple[Any, ...]:
    return plain(await batch)


async def _close_async(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


_own = threading.local()
"""The streams of this actor, if it has any."""


def close_all() -> None:
    """Closes all streams of this actor, since it goes on in another process."""
    streams: Streams | None = getattr(_own, "streams", None)
    if streams is not None:
        streams.close_all()
