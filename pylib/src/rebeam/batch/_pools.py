"""What waits before a stage and what its workers have in hand: items, pools of workers, and batches being gathered.

When anything happens is the conductor's business.
"""

from __future__ import annotations

import asyncio
import heapq
import pickle
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rebeam.batch._pipeline import Batch, Stage
    from rebeam.batch._sources import Id

CHUNK_SECONDS = 0.02
"""How long a chunk is to take: long beside what handing it over costs, short beside what a death costs."""

MOST_ITEMS, MOST_BYTES = 2000, 8 * 1024 * 1024
"""How much a chunk may hold."""

ROOM_BYTES = 64 * 1024 * 1024
"""How much may wait before a stage."""


class Work:
    """An item on its way through a step, or several that were gathered."""

    __slots__ = ("attempts", "id", "is_alone", "key", "members", "payload", "roots", "rows", "strangers")

    def __init__(self, id: str, payload: Any, roots: list[Id], rows: list[tuple[str, int]], attempts: int = 0) -> None:
        self.id = id
        self.payload: bytes | list[bytes] = payload
        self.roots = roots
        """Items of the source that are taken once this is done."""
        self.rows = rows
        """What of the journal is gone once this is done."""
        self.attempts = attempts
        self.strangers = 0
        self.key = ""
        self.members: list[Work] = []
        """What was gathered."""
        self.is_alone = False
        """It is tried without others in its chunk."""

    @property
    def size(self) -> int:
        return len(self.payload) if isinstance(self.payload, bytes) else sum(map(len, self.payload))


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

    def __init__(self, step: int, stage: Stage, first_slot: int) -> None:
        self.step, self.stage, self.first_slot = step, stage, first_slot
        self.names = [f"{stage.name}.{number}" for number in range(stage.concurrency)]
        self.queues: list[deque[Work]] = [deque() for _ in range(stage.concurrency if stage.key else 1)]
        self.bytes = 0
        self.alive = 0
        """Items that are here: waiting, in hand, or about to be tried again."""
        self.is_fed = False
        """Nothing comes any more from before."""
        self.is_over = False
        self.work, self.room = Signal(), Signal()
        self.in_hand: dict[int, tuple[int, list[Work]]] = {}
        self.timed_out: dict[int, Work | None] = {}
        """Chunks whose worker was killed for the time that an item took, and the item."""
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
    def chunk_size(self) -> int:
        """How many items make a chunk of the right length, by what they took so far."""
        if self.average <= 0:
            return 1
        return max(1, min(MOST_ITEMS, int(CHUNK_SECONDS / self.average)))

    @property
    def is_full(self) -> bool:
        most = max(64, 4 * self.stage.concurrency * self.chunk_size)
        # Also what waits to be tried again: the source is not to be read into it.
        return (self.waiting > 0 and (self.waiting >= most or self.bytes >= ROOM_BYTES)) or self.alive >= 4 * most

    def note(self, work: Work, seconds: float) -> None:
        self.seconds += seconds
        self.average = seconds if self.average == 0 else 0.95 * self.average + 0.05 * seconds
        if len(self.slowest) < 10 or seconds > self.slowest[0][0]:
            (heapq.heappush if len(self.slowest) < 10 else heapq.heapreplace)(self.slowest, (seconds, work.id))
        size = work.size
        if len(self.largest) < 10 or size > self.largest[0][0]:
            (heapq.heappush if len(self.largest) < 10 else heapq.heapreplace)(self.largest, (size, work.id))


class Gatherer:
    """Gathers items into batches before a stage."""

    def __init__(self, step: int, batch: Batch, pool: Pool) -> None:
        self.step, self.batch, self.pool = step, batch, pool
        self.groups: dict[Any, list[Work]] = {}
        self.timers: dict[Any, asyncio.TimerHandle] = {}

    def add(self, work: Work, emit: Any) -> None:
        key = None if self.batch.key is None else self.batch.key(unpickled(work.payload))
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
    work = Work(id, [it.payload for it in group], [], [], max(it.attempts for it in group))
    for one in group:
        work.roots += one.roots
        work.rows += one.rows
    work.members = group
    return work


def halves(work: Work) -> Iterator[Work]:
    """A batch as two."""
    middle = len(work.members) // 2
    for part in (work.members[:middle], work.members[middle:]):
        half = gathered(part)
        half.attempts = work.attempts
        half.is_alone = True
        half.key = work.key
        yield half


def unpickled(payload: bytes | list[bytes]) -> Any:
    """A value, or the list of values of a batch."""
    return pickle.loads(payload) if isinstance(payload, bytes) else [pickle.loads(it) for it in payload]


def listed(payloads: list[bytes]) -> bytes:
    """The values of a batch as one."""
    return pickle.dumps([pickle.loads(it) for it in payloads], 5)
