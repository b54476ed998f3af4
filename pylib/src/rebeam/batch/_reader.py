"""Reads the source, in a process of its own: what it does there is nobody else's end, and it may block.

A thread reads a little ahead of need; an item comes from there as bytes. Beside that, this process makes the keys, and
what the sink writes, of items that come from no worker: out of the journal, or gathered.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from rebeam._actor import Actor
from rebeam._errors import ActorExit
from rebeam.batch import _ids, _marks, _worker
from rebeam.batch._sources import ROW, Broken
from rebeam.batch._worker import ONE, After, Chunk, Done, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebeam.batch._ids import Id

AHEAD, AHEAD_BYTES = 1000, 16 * 1024 * 1024
"""What is read ahead of need: items, and their bytes."""


class Record(NamedTuple):
    """An item of the source.

    Attributes:
        id: in its canonical form.
        payload: its value, pickled.
        stamp: what changes when the item does; None: nothing is known of that.
        key: for the first step, if that has keys.
        failure: why it is dead from the beginning.
    """

    id: Id
    payload: bytes
    stamp: str | None
    key: str | None
    failure: Failure | None


class Block(NamedTuple):
    """Some records.

    Attributes:
        records: those that are there, as plain tuples, which are sent faster.
        is_over: there are no more.
        error: why, if that is a fault of the source.
    """

    records: list[tuple[Any, ...]]
    is_over: bool
    error: Failure | None


class Reader(Actor):
    """The one process that reads."""

    def init(self, slot: int) -> None:
        from rebeam.batch import _run

        current = _run.current()
        assert current.pipeline.origin is not None
        self._pipeline, self._source, self._marks = current.pipeline, current.pipeline.origin, current.marks[slot]
        self._marks.wipe()
        self._after = After(current.pipeline, -1)
        self._ahead: _Ahead | None = None
        self._position = 0
        """How many records were handed over, or passed by."""
        _worker.settle()

    async def read(self, start: int, blamed: dict[int, str]) -> Block:
        """What was read behind the first `start` records: waits until there is some.

        `blamed` are records, by their numbers, that have cost this process its life, and are not to do so again.
        """
        if self._ahead is not None and self._source.is_replayable and start != self._position:
            # Whoever asks has forgotten what was read.
            self._ahead.stop()
            self._ahead = None
        if self._ahead is None:
            self._position = start
            self._ahead = _Ahead(self._records(start, blamed), asyncio.get_running_loop())
        block = await self._ahead.take()
        self._position += len(block.records)
        return block

    async def sort(self, chunk: Chunk) -> Done:
        """What steps need of items, each for the step that stands in the place of its attempt."""
        outcomes: list[_worker.Outcome] = []
        for place, (id, step, payload) in enumerate(chunk.items):
            began = time.monotonic()
            self._marks.begin(1, chunk.number, place, _marks.KEY, began, _ids.digest(id))
            enter = partial(self._marks.enter, 1)
            try:
                value = _worker.value_of(payload)
                result = After(self._pipeline, step - 1).of(id, value, enter, lambda: None)
            except ActorExit:
                raise
            except BaseException as error:
                result = None, None, _worker.failure(error)._replace(may_retry=False)
            outcomes.append((ONE, result, time.monotonic() - began))
        self._marks.clear(1)
        return _worker.done(outcomes)

    def _records(self, start: int, blamed: dict[int, str]) -> Iterator[Record]:
        items = enumerate(itertools.islice(self._source.items(), start, None), start)
        while True:
            number, since = start, time.monotonic()
            self._marks.begin(0, _marks.READING, number, _marks.ITERATE, since, 0)
            found = next(items, None)
            if found is None:
                break
            start += 1
            number, (id, value, stamp) = found
            cause = blamed.get(number)
            if cause is not None:
                yield Record(_numbered(id, number), b"", None, None, Failure(cause, may_retry=False))
                continue
            yield self._record(number, id, value, stamp)
        self._marks.clear(0)

    def _record(self, number: int, id: Any, value: Any, stamp: str | None) -> Record:
        payload, key, what, made = b"", None, "its id", _numbered(id, number)
        if isinstance(value, Broken):
            made = _numbered(id, number, value.where)
            return Record(made, b"", None, None, value.failure(names_place=made != value.where))
        try:
            if callable(id):
                self._marks.begin(0, _marks.READING, number, _marks.ID, time.monotonic(), 0)
                id = id(value)
            made = _ids.canonical(id)
            what = ""
            self._marks.begin(0, _marks.READING, number, _marks.VALUE, time.monotonic(), 0)
            payload = _worker.pickled(value, "it")
            if stamp is ROW:
                stamp = hashlib.blake2b(payload, digest_size=8).hexdigest()
            if self._after.key is not None:
                what = self._after.what
                self._marks.begin(0, _marks.READING, number, _marks.KEY, time.monotonic(), 0)
                key = _ids.key(self._after.key(value))
        except ActorExit:
            raise
        except _worker.Unpicklable as error:
            return Record(made, b"", None, None, Failure(_worker.valid(str(error)), may_retry=False))
        except BaseException as error:
            return Record(made, payload, None, None, _worker.named(what, error))
        return Record(made, payload, stamp, key, None)


def _numbered(id: Any, number: int, where: str = "") -> Id:
    """The id of a record, whose own may not be had: then it is its place."""
    if isinstance(id, (int, str)):
        return _ids.canonical(id)
    return where or f"record {number}"


class _Ahead:
    """The thread that reads, and what it has read."""

    def __init__(self, records: Iterator[Record], loop: asyncio.AbstractEventLoop) -> None:
        self._records, self._loop = records, loop
        self._changed = threading.Condition()
        self._read: deque[Record] = deque()
        self._bytes = 0
        self._is_wanted, self._has_ended = True, False
        self._error: Failure | None = None
        self._some = asyncio.Event()
        threading.Thread(target=self._run, name="source", daemon=True).start()

    def stop(self) -> None:
        """Nobody wants any more of it."""
        with self._changed:
            self._is_wanted = False
            self._changed.notify()

    async def take(self) -> Block:
        """All that is there, once there is some."""
        while True:
            with self._changed:
                found = [tuple(record) for record in self._read]
                self._read.clear()
                self._bytes = 0
                self._changed.notify()
                if found or self._has_ended:
                    is_over = self._has_ended
                    return Block(found, is_over, self._error if is_over else None)
                self._some.clear()
            await self._some.wait()

    def _run(self) -> None:
        try:
            for record in self._records:
                with self._changed:
                    while self._is_wanted and (len(self._read) >= AHEAD or self._bytes >= AHEAD_BYTES):
                        self._changed.wait()
                    if not self._is_wanted:
                        return
                    self._read.append(record)
                    self._bytes += len(record.payload)
                    if len(self._read) > 1:
                        continue
                self._tell()
        except BaseException as error:
            self._error = _worker.failure(error)
        with self._changed:
            self._has_ended = True
        self._tell()

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._some.set)
        except RuntimeError:
            # The process ends.
            return
