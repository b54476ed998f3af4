"""Reads the source, in a process of its own: what it does there is nobody else's end, and it may block.

A thread reads a little ahead of need; an item comes from there as bytes. Another process makes the keys, and what the
sink writes, of items that come from no worker: out of the journal, or gathered.
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

MOST_BYTES = 128 * 1024 * 1024
"""The largest value, pickled."""

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
        position: how many records the source has given up to their end.
        is_over: there are no more.
        error: why, if that is a fault of the source.
    """

    records: list[tuple[Any, ...]]
    position: int
    is_over: bool
    error: Failure | None


class Reader(Actor):
    """The one process that reads."""

    def init(self, slot: int) -> None:
        from rebeam.batch import _run

        current = _run.current()
        assert current.pipeline.origin is not None
        self._pipeline, self._source, self._marks = current.pipeline, current.pipeline.origin, current.marks[slot]
        self._marks.take_over()
        self._after = After(current.pipeline, -1)
        self._ahead: _Ahead | None = None
        self._position = 0
        self._last: Block | None = None
        """What was handed over last, of a source that does not give it again: it may not have arrived."""
        _worker.settle()

    async def read(self, start: int, blamed: dict[int, str]) -> Block:
        """What was read behind the first `start` records: waits until there is some.

        `blamed` are records, by their numbers, that have cost this process its life, and are not to do so again.
        """
        if self._source.is_replayable:
            if self._ahead is not None and start != self._position:
                # Whoever asks has forgotten what was read.
                self._ahead.stop()
                self._ahead = None
        elif self._last is not None and start != self._position:
            return self._last
        elif self._ahead is None and start:
            return Block([], start, True, Failure("the process that read it has ended, and what it had read is lost"))
        if self._ahead is None:
            self._position = start
            self._ahead = _Ahead(self._records(self._position, blamed), asyncio.get_running_loop())
        records, is_over, error = await self._ahead.take()
        self._position += len(records)
        block = Block(records, self._position, is_over, error)
        if not self._source.is_replayable:
            self._last = block
        return block

    def _records(self, start: int, blamed: dict[int, str]) -> Iterator[Record]:
        items = enumerate(itertools.islice(self._source.items(), start, None), start)
        while True:
            self._enter(start, _marks.ITERATE)
            found = next(items, None)
            if found is None:
                break
            start += 1
            number, (id, value, stamp) = found
            cause = blamed.get(number)
            if cause is not None:
                yield Record(_numbered(id, number), b"", None, None, Failure(cause, may_retry=False))
                continue
            record = self._record(number, id, value, stamp)
            # It may have to wait until there is room for it.
            self._marks.clear(0)
            yield record
        self._marks.clear(0)

    def _enter(self, number: int, phase: int) -> None:
        """What is done with a record from here on."""
        digest = _ids.record_digest(number)
        self._marks.begin(0, _marks.READING, number & 0xFFFF_FFFF, phase, time.monotonic(), digest)

    def _record(self, number: int, id: Any, value: Any, stamp: str | None) -> Record:
        payload, key, what, made = b"", None, "its id", _numbered(id, number)
        if isinstance(value, Broken):
            made = _numbered(id, number, value.where)
            return Record(made, b"", None, None, value.failure(names_place=made != value.where))
        try:
            if callable(id):
                self._enter(number, _marks.ID)
                id = id(value)
            made = _ids.canonical(id)
            what = ""
            self._enter(number, _marks.VALUE)
            payload = _worker.pickled(value, "it")
            if len(payload) > MOST_BYTES:
                why = f"it is {len(payload):,} bytes, where {MOST_BYTES:,} are the limit: give its file instead"
                return Record(made, b"", None, None, Failure(why, may_retry=False))
            if stamp is ROW:
                stamp = hashlib.blake2b(payload, digest_size=8).hexdigest()
            if self._after.key is not None:
                what = self._after.what
                self._enter(number, _marks.KEY)
                key = _ids.key(self._after.key(value))
        except ActorExit:
            raise
        except _worker.Unpicklable as error:
            return Record(made, b"", None, None, Failure(_worker.valid(str(error)), may_retry=False))
        except BaseException as error:
            return Record(made, payload, None, None, _worker.named(what, error))
        return Record(made, payload, stamp, key, None)


class Sorter(Actor):
    """Makes what steps need of items that come from no worker."""

    def init(self, slot: int) -> None:
        from rebeam.batch import _run

        current = _run.current()
        self._pipeline, self._marks = current.pipeline, current.marks[slot]
        self._marks.take_over()
        _worker.settle()

    def sort(self, chunk: Chunk) -> Done:
        """What steps need of items, each for the step that stands in the place of its attempt."""
        outcomes: list[_worker.Outcome] = []
        enter = partial(self._marks.enter, 0)
        for place, (id, step, payload) in enumerate(chunk.items):
            began = time.monotonic()
            self._marks.begin(0, chunk.number, place, _marks.KEY, began, _ids.digest(id))
            try:
                value = _worker.value_of(payload)
                result = After(self._pipeline, step - 1).of(id, value, enter, lambda: None)
            except ActorExit:
                raise
            except BaseException as error:
                result = None, None, _worker.failure(error)._replace(may_retry=False)
            outcomes.append((ONE, result, time.monotonic() - began))
        self._marks.clear(0)
        return _worker.done(outcomes)


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

    async def take(self) -> tuple[list[tuple[Any, ...]], bool, Failure | None]:
        """All that is there, once there is some."""
        while True:
            with self._changed:
                found = [tuple(record) for record in self._read]
                self._read.clear()
                self._bytes = 0
                self._changed.notify()
                if found or self._has_ended:
                    is_over = self._has_ended
                    return found, is_over, self._error if is_over else None
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
