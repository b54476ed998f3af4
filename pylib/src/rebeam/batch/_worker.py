"""One worker of a stage: takes items in chunks, and tells of each what came of it.

The user's functions run here and in the source's process, and values are unpickled nowhere else. What an item does
to the process is the process's end. When a worker dies, the marks that it has left tell the conductor which item it
was.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import resource
import sys
import time
import traceback
from functools import partial
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from rebeam._actor import Actor
from rebeam._errors import ActorExit
from rebeam.batch import _ids, _marks
from rebeam.batch._pipeline import Batch, Dead, Item, Retry, Skip, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from rebeam.batch._ids import Id
    from rebeam.batch._pipeline import Pipeline

ONE, MANY, NONE, SAME, FAILED = range(5)
"""What came of an item: one result, several, none, itself, or an error."""

LONGEST = 1000
"""Characters of a cause; of a traceback, so many times twenty."""

DEPTH = 5000
"""How deep calls may nest: values that are nested deep are pickled so."""

Result: TypeAlias = "tuple[bytes | None, Any, Failure | None]"
"""A value; what the next step or the sink needs of it (its key, or what is written); or why that cannot be had."""

Outcome: TypeAlias = tuple[int, Any, float]
"""`(ONE, …)` and so on, and the seconds that it took."""


class Failure(NamedTuple):
    """What went wrong with an item.

    Attributes:
        cause: in a line.
        detail: the traceback.
        may_retry: whether another attempt makes sense.
        after: seconds to wait before that at least.
    """

    cause: str
    detail: str = ""
    may_retry: bool = True
    after: float = 0.0


class Chunk(NamedTuple):
    """Items that a worker is handed at once: of each its id, its attempt, and its value or the values of a batch."""

    number: int
    items: list[tuple[Id, int, bytes | list[bytes]]]


class Done(NamedTuple):
    """What a worker says of a chunk.

    Attributes:
        outcomes: of each item, as far as they were done.
        cpu: seconds of user and system time that the worker has used so far.
        peak_kib: its largest resident size so far.
        broken: why the stage cannot be prepared, if so: nothing was begun.
    """

    outcomes: list[Outcome]
    cpu: float
    peak_kib: int
    broken: Failure | None = None


class _OfStage(Actor):
    """What both sorts of workers know of their stage."""

    def init(self, step: int, slot: int) -> None:
        from rebeam.batch import _run

        current = _run.current()
        stage = current.pipeline.steps[step]
        assert isinstance(stage, Stage)
        self._stage, self._marks = stage, current.marks[slot]
        self._marks.take_over()
        self._after = After(current.pipeline, step)
        settle()


class Worker(_OfStage):
    """Applies one stage to one item after the other."""

    def init(self, step: int, slot: int) -> None:
        super().init(step, slot)
        self._apply: Callable[[Any, Item], Any] | None = None
        # What comes after it is not to overtake an item that is tried again.
        self._stops = self._stage.key is not None

    def run(self, chunk: Chunk) -> Done:
        """Does a chunk; with keys, up to the first item that fails."""
        outcomes: list[Outcome] = []
        if self._apply is None:
            self._marks.begin(0, chunk.number, 0, _marks.PREPARE, time.monotonic(), 0)
            try:
                self._apply = applier(self._stage, _called_init(self._stage))
            except ActorExit:
                raise
            except BaseException as error:
                return done(outcomes, failure(error))
            finally:
                self._marks.clear(0)
        marks, number, digest, apply, clock = self._marks, chunk.number, _ids.digest, self._apply, time.monotonic
        stage, after, enter, home = self._stage, self._after, partial(marks.enter, 0), _home
        for place, (id, attempt, payload) in enumerate(chunk.items):
            began = clock()
            marks.begin(0, number, place, _marks.APPLY, began, digest(id))
            try:
                os.fchdir(home)
                result = apply(value_of(payload), Item(id, attempt))
                if hasattr(type(result), "__await__"):
                    # Nobody could tell by looking at it.
                    result = asyncio.run(_awaited(result))
                outcome = told(stage, id, result, after, enter)
            except ActorExit:
                raise
            except BaseException as error:
                outcome = concluded(stage, error)
            outcomes.append((*outcome, clock() - began))
            if outcome[0] == FAILED and self._stops:
                break
        marks.clear(0)
        return done(outcomes)


class AsyncWorker(_OfStage):
    """Applies a stage that is an `async def`: many of its items wait beside each other."""

    def init(self, step: int, slot: int) -> None:
        super().init(step, slot)
        self._preparing: asyncio.Task[Any] | None = None
        self._free = list(range(self._stage.in_flight))

    async def run(self, chunk: Chunk) -> Done:
        """Does a chunk: all of its items at once, beside those of other chunks."""
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(chunk.number))
        preparing = self._preparing
        try:
            apply = await asyncio.shield(preparing)
        except Exception as error:
            if self._preparing is preparing:
                # The next chunk tries again.
                self._preparing = None
            return done([], failure(error))
        return done(list(await asyncio.gather(*(self._one(apply, chunk.number, *it) for it in enumerate(chunk.items)))))

    async def _prepare(self, number: int) -> Any:
        self._marks.begin(0, number, 0, _marks.PREPARE, time.monotonic(), 0)
        try:
            state = _called_init(self._stage)
            if inspect.isawaitable(state):
                state = await state
            return applier(self._stage, state)
        except Exception:
            raise
        except BaseException as error:
            if isinstance(error, ActorExit):
                raise
            raise RuntimeError(f"`init` raised {words(error)}") from error
        finally:
            self._marks.clear(0)

    async def _one(self, apply: Any, number: int, place: int, it: tuple[Id, int, Any]) -> Outcome:
        id, attempt, payload = it
        began, marks = time.monotonic(), self._marks
        # There are as many as the conductor hands out.
        entry = self._free.pop() if self._free else 0
        marks.begin(entry, number, place, _marks.APPLY, began, _ids.digest(id))
        enter = partial(marks.enter, entry)
        try:
            outcome = await _Stepped(self._applied(apply, id, attempt, payload, enter), marks, entry)
        finally:
            marks.clear(entry)
            self._free.append(entry)
        return (*outcome, time.monotonic() - began)

    async def _applied(self, apply: Any, id: Id, attempt: int, payload: Any, enter: Any) -> tuple[int, Any]:
        limit = self._stage.timeout
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                result = apply(value_of(payload), Item(id, attempt))
                if inspect.isasyncgen(result):
                    result = _Many([one async for one in result])
                elif hasattr(type(result), "__await__"):
                    result = await result
            return told(self._stage, id, result, self._after, enter)
        except ActorExit:
            raise
        except BaseException as error:
            if isinstance(error, TimeoutError) and scope.expired():
                return FAILED, Failure(f"it took longer than {limit:g} s", failure(error).detail)
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            return concluded(self._stage, error)


class _Stepped:
    """A coroutine that says when its own code runs, and when it waits."""

    def __init__(self, coroutine: Any, marks: _marks.Marks, entry: int) -> None:
        self._coroutine, self._marks, self._entry = coroutine, marks, entry

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, run = self._coroutine.__await__(), self._marks.run
        step: Callable[[], Any] = partial(steps.send, None)
        while True:
            run(self._entry)
            try:
                waits_for = step()
            except StopIteration as end:
                return end.value
            finally:
                run(None)
            try:
                step = partial(steps.send, (yield waits_for))
            except BaseException as error:
                step = partial(steps.throw, error)


class _Many(list[Any]):
    """What an asynchronous generator has yielded."""


class After:
    """What the step after this one needs of a value: its key, or what the sink writes."""

    def __init__(self, pipeline: Pipeline, step: int) -> None:
        after = pipeline.steps[step + 1] if step + 1 < len(pipeline.steps) else None
        self.key = after.key if isinstance(after, (Stage, Batch)) else None
        self.what = "" if after is None else f"the key of `{after.name}`"
        sink = pipeline.target
        self.encode = sink.encode if after is None and sink is not None and sink.takes_values else None

    def of(self, id: Id, value: Any, enter: Callable[[int], None], dump: Callable[[], bytes | None]) -> Result:
        """A result: `dump` pickles the value, if it is needed."""
        if self.encode is not None:
            enter(_marks.SINK)
            try:
                return None, self.encode(id, value), None
            except ActorExit:
                raise
            except BaseException as error:
                return _dumped(dump), None, named("the sink", error)
        payload = dump()
        if self.key is None:
            return payload, None, None
        enter(_marks.KEY)
        try:
            return payload, _ids.key(self.key(value)), None
        except ActorExit:
            raise
        except BaseException as error:
            return payload, None, named(self.what, error)


def _dumped(dump: Callable[[], bytes | None]) -> bytes | None:
    """A value for who looks at it later; nothing if it cannot be kept."""
    try:
        return dump()
    except Unpicklable:
        return b""


def settle() -> None:
    """Readies this process for code that is not ours."""
    global _home
    if _home < 0:
        _home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sys.setrecursionlimit(max(DEPTH, sys.getrecursionlimit()))


_home = -1
"""Where each item begins, wherever the one before it has gone."""


def done(outcomes: list[Outcome], broken: Failure | None = None) -> Done:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Done(outcomes, used.ru_utime + used.ru_stime, used.ru_maxrss, broken)


def told(stage: Stage, id: Id, result: Any, after: After, enter: Callable[[int], None]) -> tuple[int, Any]:
    """What a result is to the conductor."""
    if stage.kind == "sink":
        if isinstance(result, GeneratorType):
            # What it does, it does as it is iterated over.
            for _ in result:
                pass
        return NONE, None
    if stage.kind == "filter":
        is_kept, value = result
        return (SAME, after.of(id, value, enter, lambda: None)) if is_kept else (NONE, None)
    if isinstance(result, (GeneratorType, _Many)):
        values = list(result)
        return MANY, [after.of(f"{id}/{n}", one, enter, partial(pickled, one)) for n, one in enumerate(values)]
    return ONE, after.of(id, result, enter, partial(pickled, result))


class Unpicklable(Exception):  # noqa: N818
    """A value that cannot be sent on."""


def pickled(value: Any, what: str = "its result") -> bytes:
    """A value as it is sent on.

    Raises:
        Unpicklable: it cannot be.
    """
    try:
        try:
            return pickle.dumps(value, 5)
        except RecursionError:
            # CPython 3.12 lets C code nest less deep than Python's own.
            slowly: bytes = pickle._dumps(value, 5)  # type: ignore[attr-defined]
            return slowly
    except Exception as error:
        raise Unpicklable(f"{what} cannot be pickled: {words(error)}") from None


_JOINED = b"L"
"""What begins the values of a batch that are kept as one. (A pickle begins with 0x80.)"""


def joined(payloads: list[bytes]) -> bytes:
    """The values of a batch as one, without a look into them."""
    return _JOINED + b"".join(len(it).to_bytes(8, "little") + it for it in payloads)


def value_of(payload: bytes | list[bytes]) -> Any:
    """A value, or the list of values of a batch."""
    if isinstance(payload, list):
        return [value_of(it) for it in payload]
    if not payload.startswith(_JOINED):
        return pickle.loads(payload)
    values, place = [], 1
    while place < len(payload):
        end = place + 8 + int.from_bytes(payload[place : place + 8], "little")
        values.append(value_of(payload[place + 8 : end]))
        place = end
    return values


def concluded(stage: Stage, error: BaseException) -> tuple[int, Any]:
    """What an exception of a stage means for its item."""
    try:
        return _concluded(stage, error)
    except Exception:
        # It cannot even be looked at.
        return FAILED, Failure(f"{type(error).__qualname__}, of which nothing can be said")


def _concluded(stage: Stage, error: BaseException) -> tuple[int, Any]:
    if isinstance(error, Skip):
        return NONE, None
    if isinstance(error, Unpicklable):
        return FAILED, Failure(valid(str(error))[:LONGEST], may_retry=False)
    if isinstance(error, Dead):
        return FAILED, failure(error)._replace(cause=_own_words(error), may_retry=False)
    if isinstance(error, Retry):
        return FAILED, failure(error)._replace(cause=_own_words(error))
    may_retry = stage.retry_on is None or isinstance(error, stage.retry_on)
    return FAILED, failure(error)._replace(may_retry=may_retry and not isinstance(error, stage.never_retry))


def _own_words(error: Exception) -> str:
    try:
        return valid(str(error))[:LONGEST] or type(error).__name__
    except Exception:
        return valid(words(error))[:LONGEST]


def failure(error: BaseException) -> Failure:
    """An exception: the traceback is that from the stage on."""
    own = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, own))
    except Exception:
        # Its own `str` raises.
        text = "".join(traceback.format_tb(own))
    return Failure(valid(words(error))[:LONGEST], valid(text)[-20 * LONGEST :], True, _retry_after(error))


MOST_AFTER = 3600.0
"""Seconds that an exception may have an item wait, at most."""


def _retry_after(error: BaseException) -> float:
    """What an exception says of when to try again: `retry_after`, or the header of its `response`, as HTTP has it."""
    try:
        said = getattr(error, "retry_after", None)
        if said is None:
            response = getattr(error, "response", None)
            said = getattr(response, "headers", {}).get("Retry-After") if response is not None else None
        if said is None:
            return 0.0
        try:
            seconds = float(said)
        except (TypeError, ValueError):
            import email.utils

            at = email.utils.parsedate_to_datetime(str(said))
            seconds = at.timestamp() - time.time()
        return min(max(0.0, seconds), MOST_AFTER) if seconds == seconds else 0.0
    except Exception:
        # Whatever it says, it is nothing that could be heeded.
        return 0.0


def named(what: str, error: BaseException) -> Failure:
    """The failure of something that belongs to a later step."""
    found = failure(error)
    return found._replace(cause=f"{what}: {found.cause}"[:LONGEST], may_retry=False)


def words(error: BaseException) -> str:
    """An exception in a line."""
    name = type(error).__qualname__
    try:
        return f"{name}: {error}".rstrip(": ")
    except Exception as fault:
        return f"{name}, whose str() raises {type(fault).__qualname__}"


def valid(text: str) -> str:
    """Text that can be written down: lone surrogates, as of a file's name, and what steers terminals are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(it if it >= " " or it in "\n\t" else repr(it)[1:-1] for it in text)


def applier(stage: Stage, state: Any) -> Callable[[Any, Item], Any]:
    """The stage as a function of a value and its item. Of a filter, what it gives is a pair: whether, and the value."""
    function = _callable(stage.function)
    has_state = state is not None
    wants_item = _wants_item(_called(function), 1 + has_state)
    apply: Callable[[Any, Item], Any]
    match (has_state, wants_item):
        case (False, False):
            apply = lambda value, item: function(value)  # noqa: E731
        case (False, True):
            apply = lambda value, item: function(value, item=item)  # noqa: E731
        case (True, False):
            apply = lambda value, item: function(value, state)  # noqa: E731
        case _:
            apply = lambda value, item: function(value, state, item=item)  # noqa: E731
    if stage.kind != "filter":
        return apply

    def judge(value: Any, item: Item) -> Any:
        result = apply(value, item)
        return _judged(result, value) if inspect.isawaitable(result) else (bool(result), value)

    return judge


async def _judged(result: Awaitable[Any], value: Any) -> tuple[bool, Any]:
    return bool(await result), value


def _called_init(stage: Stage) -> Any:
    os.fchdir(_home)
    return None if stage.init is None else stage.init()


def _callable(given: Any) -> Any:
    """A stage's function; of a class whose objects can be called, such an object. Others, as `int`, are called."""
    makes_callables = inspect.isclass(given) and any("__call__" in vars(base) for base in given.__mro__)
    return given() if makes_callables else given


def _called(function: Any) -> Any:
    """Whose parameters count when it is called."""
    plain = inspect.isroutine(function) or inspect.isclass(function) or isinstance(function, partial)
    return function if plain else function.__call__


def _wants_item(function: Any, given: int) -> bool:
    """Whether a function has a parameter `item` besides those that it is given by their places."""
    if isinstance(function, partial) and "item" in function.keywords:
        return False
    try:
        parameters = list(inspect.signature(function).parameters.values())
        # A wrapper may not take what it wraps does.
        taken = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_place = [it.name for it in parameters if it.kind in positional][:given]
    has_item = any(it.name == "item" and it.kind != inspect.Parameter.POSITIONAL_ONLY for it in parameters)
    passes_it = any(it.name == "item" or it.kind == inspect.Parameter.VAR_KEYWORD for it in taken)
    return has_item and passes_it and "item" not in by_place


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
