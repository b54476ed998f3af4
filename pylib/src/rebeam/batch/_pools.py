"""What waits before a stage and what its workers have in hand: items, pools of workers, and batches being gathered.

When anything happens is the conductor's business. What an item is, nobody here looks at: a value is bytes.
"""

from __future__ import annotations

import asyncio
import heapq
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebeam.batch._ids import Id
    from rebeam.batch._journal import Row
    from rebeam.batch._marks import Entry, Marks
    from rebeam.batch._pipeline import Batch, Stage

CHUNK_SECONDS = 0.02
"""How long a chunk is to take: long beside what handing it over costs, short beside what a death costs."""

MOST_ITEMS, MOST_BYTES = 2000, 8 * 1024 * 1024
"""How much a chunk may hold."""

MOST_CHUNKS = 150
"""Chunks that a worker of an `async def` has in hand at once."""

ROOM_BYTES = 64 * 1024 * 1024
"""How much may wait before a stage."""


class Work:
    """An item on its way through a step, or several that were gathered."""

    __slots__ = (
        "attempts", "id", "is_alone", "is_later", "key", "members", "payload", "root", "roots", "rows", "size",
        "strangers", "target",
    )  # fmt: skip

    def __init__(
        self,
        id: Id,
        payload: Any,
        roots: list[tuple[Id, str | None]],
        rows: list[Row],
        attempts: int = 0,
        key: str | None = None,
        root: Id | None = None,
    ) -> None:
        self.id = id
        self.payload: bytes | list[bytes] = payload
        self.size = len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
        self.roots = roots
        """Items of the source that are taken once this is done, with their stamps."""
        self.rows = rows
        """What of the journal is gone once this is done."""
        self.attempts = attempts
        self.root = id if root is None else root
        """The item of the source that it was made of."""
        self.is_later = False
        """It is to be tried again after a while."""
        self.strangers = 0
        self.key = key
        """Its key for the step that it comes to; None: it is not known yet, or there are none."""
        self.target = 0
        """While its key is being made: the step that it goes to then."""
        self.members: list[Work] = []
        """What was gathered."""
        self.is_alone = False
        """It is tried without others in its chunk."""


class Signal:
    """Something has changed: whoever waits looks again."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self, timeout: float | None = None) -> None:
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._future], timeout=timeout)

    def set(self) -> None:
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(None)


class Pool:
    """One stage: what waits for it, what its workers have in hand, and what it has done so far."""

    def __init__(self, step: int, stage: Stage, marks: list[Marks]) -> None:
        self.step, self.stage, self.marks = step, stage, marks
        self.names = [f"{stage.name}.{number}" for number in range(stage.concurrency)]
        self.queues: list[deque[Work]] = [deque() for _ in range(stage.concurrency if stage.key else 1)]
        self.held: dict[str, deque[Work]] = {}
        """Of keys of which an item is tried again later, or is in flight: what comes behind it."""
        self.bytes = 0
        self.alive = 0
        """Items that are here: waiting, in hand, or about to be tried again."""
        self.is_fed = False
        """Nothing comes any more from before."""
        self.is_over = False
        self.work, self.room = Signal(), Signal()
        self.in_hand: dict[int, tuple[int, list[Work]]] = {}
        self.aside = 0
        """Of these, how many were set aside to be tried last."""
        self.is_alone_in = [False] * stage.concurrency
        self.is_ready = [False] * stage.concurrency
        """Which workers have been prepared."""
        self.chunks_of = [0] * stage.concurrency
        self.items_of = [0] * stage.concurrency
        """How many chunks and items each worker has in hand."""
        self.timed_out: dict[int, tuple[Work, float]] = {}
        """Chunks whose worker was killed for the time that an item took, the item, and the time it had."""
        self.failed_in_row = self.pauses = 0
        self.paused_until = 0.0
        self.last_dead: object = None
        self.last_running: Entry | None = None
        self.last_items = 0
        """The last worker that died, whose code ran then, and how many items it had in hand."""
        self.is_prepared = False
        self.strangers = 0
        """How often somebody else has ended a worker while it was prepared."""
        self.broken = 0
        """How often its workers could not be prepared, one after the other."""
        self.tokens, self.filled = 1.0, time.monotonic()
        self.average = 0.0
        self.seconds = 0.0
        self.done = self.failed = self.retries = self.deaths = 0
        self.cpu: dict[int, float] = {}
        self.cpu_before = 0.0
        self.peak_kib = 0
        self.slowest: list[tuple[float, str]] = []
        self.largest: list[tuple[int, str]] = []

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues))

    @property
    def is_half_open(self) -> bool:
        """Whether so many have failed that one at a time is tried."""
        return self.stage.pause_after is not None and self.failed_in_row >= self.stage.pause_after

    def has_room(self, slot: int) -> bool:
        """Whether a worker may be handed another chunk."""
        if self.is_half_open and self.in_hand:
            return False
        if not self.is_ready[slot]:
            return self.chunks_of[slot] == 0
        if self.stage.is_async:
            is_free = self.chunks_of[slot] < MOST_CHUNKS and not self.is_alone_in[slot]
            return is_free and self.items_of[slot] < self.stage.in_flight
        # The next chunk is there before the last one is done; where order or a resource matters, it is not.
        return self.chunks_of[slot] < (1 if self.stage.key or self.stage.uses else 2)

    def take(self, slot: int) -> list[Work]:
        """The next chunk for a worker; none, if nothing can be taken now."""
        stage = self.stage
        queue = self.queues[slot if stage.key else 0]
        most = self.chunk_size
        if stage.is_async:
            most = max(most, -(-stage.in_flight // MOST_CHUNKS))
        most = min(most, max(1, len(queue) // stage.concurrency))
        if stage.is_async:
            most = min(most, stage.in_flight - self.items_of[slot])
        if stage.rate is not None:
            most = max(1, min(most, int(self.tokens)))
        if self.is_half_open:
            most = 1
        works: list[Work] = []
        size = 0
        while queue and len(works) < most and size < MOST_BYTES:
            work = queue[0]
            if work.key is not None and (behind := self.held.get(work.key)) is not None:
                behind.append(queue.popleft())
                continue
            if work.is_alone and (works or (stage.is_async and self.items_of[slot])):
                # It waits until it can be alone, and others behind it.
                break
            works.append(queue.popleft())
            size += work.size
            if stage.is_async and work.key is not None:
                self.held[work.key] = deque()
            if work.is_alone:
                self.is_alone_in[slot] = True
                break
        self.tokens -= len(works)
        self.bytes -= size
        return works

    def put_back(self, work: Work) -> None:
        """An item is the next again; of those of its key, if it has one."""
        self.bytes += work.size
        behind = None if work.key is None else self.held.get(work.key)
        if behind is not None:
            behind.appendleft(work)
        else:
            self.queues[self.slot_of(work.key) if self.stage.key else 0].appendleft(work)
        self.work.set()

    def hold(self, work: Work) -> None:
        """An item is to be tried again later, and those of its key wait for it."""
        assert work.key is not None
        self.bytes += work.size
        self.held.setdefault(work.key, deque()).appendleft(work)

    def release(self, key: str) -> None:
        """What waited behind an item of this key may go on, in its order."""
        behind = self.held.pop(key, None)
        if behind:
            self.queues[self.slot_of(key)].extendleft(reversed(behind))
        self.work.set()

    def slot_of(self, key: str | None) -> int:
        """Which worker has a key."""
        return 0 if key is None else zlib.crc32(key.encode("utf-8", "surrogatepass")) % self.stage.concurrency

    @property
    def chunk_size(self) -> int:
        """How many items make a chunk of the right length, by what they took so far."""
        if self.average <= 0:
            return 1
        return max(1, min(MOST_ITEMS, int(CHUNK_SECONDS / self.average)))

    @property
    def is_full(self) -> bool:
        most = max(64, 4 * self.stage.concurrency * max(self.chunk_size, self.stage.in_flight))
        # Also what waits to be tried again: the source is not to be read into it.
        return (
            self.waiting > 0 and (self.waiting >= most or self.bytes >= ROOM_BYTES)
        ) or self.alive - self.aside >= 4 * most

    def note(self, work: Work, seconds: float) -> None:
        self.seconds += seconds
        self.average = seconds if self.average == 0 else 0.95 * self.average + 0.05 * seconds
        if len(self.slowest) < 10 or seconds > self.slowest[0][0]:
            (heapq.heappush if len(self.slowest) < 10 else heapq.heapreplace)(self.slowest, (seconds, str(work.id)))
        size = work.size
        if len(self.largest) < 10 or size > self.largest[0][0]:
            (heapq.heappush if len(self.largest) < 10 else heapq.heapreplace)(self.largest, (size, str(work.id)))


class Gatherer:
    """Gathers items into batches before a stage."""

    def __init__(self, step: int, batch: Batch, pool: Pool) -> None:
        self.step, self.batch, self.pool = step, batch, pool
        self.groups: dict[Any, list[Work]] = {}
        self.timers: dict[Any, asyncio.TimerHandle] = {}

    def add(self, work: Work, emit: Any) -> None:
        key, work.key = work.key, None
        group = self.groups.setdefault(key, [])
        group.append(work)
        if len(group) >= self.batch.size:
            self.release(key, emit)
        elif len(group) == 1 and self.batch.within is not None:
            loop = asyncio.get_running_loop()
            self.timers[key] = loop.call_later(self.batch.within, self.release, key, emit)

    def release(self, key: Any, emit: Any) -> None:
        timer = self.timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        group = self.groups.pop(key, None)
        if group:
            emit(gathered(group))

    def release_all(self, emit: Any) -> None:
        for key in list(self.groups):
            self.release(key, emit)


def gathered(group: list[Work]) -> Work:
    """Several items as one."""
    id = group[0].id if len(group) == 1 else f"{group[0].id}..{group[-1].id}"
    work = Work(id, [it.payload for it in group], [], [], max(it.attempts for it in group), root=group[0].root)
    for one in group:
        work.roots += one.roots
        work.rows += one.rows
    work.members = group
    return work


def halves(work: Work, *, alone: bool) -> Iterator[Work]:
    """A batch as two, the last one first; `alone`: each is tried without others in its chunk."""
    middle = len(work.members) // 2
    for part in (work.members[middle:], work.members[:middle]):
        half = gathered(part)
        half.attempts = work.attempts
        half.is_alone = alone
        half.key = work.key
        yield half
