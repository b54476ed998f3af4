"""One worker of a stage: takes items in chunks, and tells of each what came of it.

What an item does to the process is the process's end: the conductor learns by the death of the worker, and by the mark
that the worker leaves in shared memory, which item it was.
"""

from __future__ import annotations

import inspect
import pickle
import resource
import struct
import time
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from rebeam._actor import Actor
from rebeam.batch._pipeline import Item, Stage

if TYPE_CHECKING:
    import asyncio
    import mmap
    from collections.abc import Callable

ONE, MANY, NONE, SAME, FAILED = range(5)
"""What came of an item: one result, several, none, itself, or an error."""

MARK = struct.Struct("=QQd")
"""What a worker leaves in shared memory: the chunk it works at, the place in it, and since when."""


LONGEST = 1000
"""Characters of a cause; of a traceback, so many times twenty."""


class Chunk(NamedTuple):
    """Items that a worker is handed at once: of each its id, its attempt, and its value or the values of a batch."""

    number: int
    items: list[tuple[str, int, bytes | list[bytes]]]


class Done(NamedTuple):
    """What a worker says of a chunk.

    Attributes:
        outcomes: of each item `(ONE, …)` and so on, and the seconds that it took.
        cpu: seconds of user and system time that the worker has used so far.
        peak_kib: its largest resident size so far.
    """

    outcomes: list[tuple[int, Any, float]]
    cpu: float
    peak_kib: int


class Worker(Actor):
    """Applies one stage."""

    def init(self, step: int, slot: int) -> None:
        from rebeam.batch import _run

        current = _run.current()
        stage = current.pipeline.steps[step]
        assert isinstance(stage, Stage)
        self._marks: mmap.mmap = current.marks
        self._place = slot * MARK.size
        self._kind = stage.kind
        self._apply, self._runner = _applier(stage)
        # What comes after it is not to overtake an item that is tried again.
        self._stops = stage.key is not None

    def run(self, chunk: Chunk) -> Done:
        """Does a chunk; with keys, up to the first item that fails."""
        if self._runner is not None and not self._stops:
            outcomes = self._runner.run(self._together(chunk))
        else:
            outcomes = self._one_by_one(chunk)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Done(outcomes, used.ru_utime + used.ru_stime, used.ru_maxrss)

    def _one_by_one(self, chunk: Chunk) -> list[tuple[int, Any, float]]:
        outcomes: list[tuple[int, Any, float]] = []
        marks, place, number = self._marks, self._place, chunk.number
        clock, pack = time.perf_counter, MARK.pack_into
        for index, (id, attempt, payload) in enumerate(chunk.items):
            pack(marks, place, number, index, time.monotonic())
            began = clock()
            try:
                result = self._apply(_value(payload), Item(id, attempt))
                if self._runner is not None:
                    result = self._runner.run(result)
                tag, told = self._told(result)
            except Exception as error:
                tag, told = FAILED, failure(error)
            outcomes.append((tag, told, clock() - began))
            if tag == FAILED and self._stops:
                break
        return outcomes

    async def _together(self, chunk: Chunk) -> list[tuple[int, Any, float]]:
        import asyncio

        # If it dies, it may be any of them.
        MARK.pack_into(self._marks, self._place, chunk.number, len(chunk.items), time.monotonic())

        async def one(id: str, attempt: int, payload: Any) -> tuple[int, Any, float]:
            began = time.perf_counter()
            try:
                tag, told = self._told(await self._apply(_value(payload), Item(id, attempt)))
            except Exception as error:
                tag, told = FAILED, failure(error)
            return tag, told, time.perf_counter() - began

        return await asyncio.gather(*(one(*item) for item in chunk.items))

    def _told(self, result: Any) -> tuple[int, Any]:
        """What a result is to the conductor."""
        if self._kind == "sink":
            return NONE, None
        if self._kind == "filter":
            return (SAME, None) if result else (NONE, None)
        many = list(result) if inspect.isgenerator(result) else None
        try:
            if many is not None:
                return MANY, [pickle.dumps(one, 5) for one in many]
            return ONE, pickle.dumps(result, 5)
        except Exception as error:
            return FAILED, (f"its result cannot be pickled: {valid(_words(error))}"[:LONGEST], "", False)


def _value(payload: bytes | list[bytes]) -> Any:
    return pickle.loads(payload) if isinstance(payload, bytes) else [pickle.loads(it) for it in payload]


def failure(error: Exception) -> tuple[str, str, bool]:
    """The cause in a line, the traceback from the stage on, and whether another attempt makes sense."""
    own = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, own))
    except Exception:
        # Its own `str` raises.
        text = "".join(traceback.format_tb(own))
    return valid(_words(error))[:LONGEST], valid(text)[-20 * LONGEST :], True


def _words(error: Exception) -> str:
    name = type(error).__qualname__
    try:
        return f"{name}: {error}".rstrip(": ")
    except Exception as fault:
        return f"{name}, whose str() raises {type(fault).__qualname__}"


def valid(text: str) -> str:
    """Text that can be written down: lone surrogates, as of a file's name, and what steers terminals are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(it if it >= " " or it in "\n\t" else repr(it)[1:-1] for it in text)


def _applier(stage: Stage) -> tuple[Callable[[Any, Item], Any], asyncio.Runner | None]:
    """The stage as a function of a value and its item, and what runs it if it is an `async def`."""
    state = stage.init() if stage.init is not None else None
    function = _callable(stage.function)
    called = _called(function)
    wants_item = "item" in _parameters(called)
    runner = None
    if inspect.iscoroutinefunction(called):
        import asyncio

        runner = asyncio.Runner()
    match (state is not None, wants_item):
        case (False, False):
            return (lambda value, item: function(value)), runner
        case (False, True):
            return (lambda value, item: function(value, item=item)), runner
        case (True, False):
            return (lambda value, item: function(value, state)), runner
        case _:
            return (lambda value, item: function(value, state, item=item)), runner


def _callable(given: Any) -> Any:
    """A stage's function; of a class whose objects can be called, such an object. Others, as `int`, are called."""
    makes_callables = inspect.isclass(given) and any("__call__" in vars(base) for base in given.__mro__)
    return given() if makes_callables else given


def _called(function: Any) -> Any:
    """Whose parameters count when it is called."""
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def _parameters(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
