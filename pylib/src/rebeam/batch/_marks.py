"""Memory that all processes of a run share, in which each worker leaves what it has in hand.

By it the conductor knows, when a worker has died, whose fault that is; and the next run, when everything has died.
It must not know what the work is.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

APPLY, KEY, SINK, PREPARE, ID, VALUE, ITERATE = range(7)
"""What is done with an item: the stage's own function; the key for the next step; what the sink makes of it; `init` of
the stage, whatever the item; the source's `id`; its value is pickled; the source goes on to the next."""

READING = 2**64 - 1
"""Instead of a chunk: a record of the source."""

_ENTRY = struct.Struct("=QIIdQ")
_PHASE, _PHASE_AT = struct.Struct("=Id"), struct.calcsize("=QI")
_RUNNING = struct.Struct("=Q")


class Entry(NamedTuple):
    """One item in hand.

    Attributes:
        chunk: the number of its chunk.
        place: its place in that.
        phase: `APPLY` and so on.
        since: of the monotonic clock.
        digest: of its id.
    """

    chunk: int
    place: int
    phase: int
    since: float
    digest: int


class Marks:
    """The marks of one worker."""

    def __init__(self, memory: mmap.mmap, offset: int, count: int, left: Marks | None = None) -> None:
        self._memory, self._offset, self._count = memory, offset, count
        self._first = offset + _RUNNING.size
        self.left = left
        """What the process before this one had in hand when it died."""

    def enter(self, entry: int, phase: int) -> None:
        """Something else is done with the item in hand, from now on."""
        place = self._first + entry * _ENTRY.size + _PHASE_AT
        _PHASE.pack_into(self._memory, place, phase, time.monotonic())

    def begin(self, entry: int, chunk: int, place: int, phase: int, since: float, digest: int) -> None:
        """An item is taken in hand."""
        _ENTRY.pack_into(self._memory, self._first + entry * _ENTRY.size, chunk, place, phase, since, digest)

    def clear(self, entry: int) -> None:
        """It is out of hand."""
        self.begin(entry, 0, 0, 0, 0.0, 0)

    def run(self, entry: int | None) -> None:
        """Of several that wait beside each other, this one's code runs now."""
        _RUNNING.pack_into(self._memory, self._offset, 0 if entry is None else entry + 1)

    def running(self) -> Entry | None:
        """The one whose code runs, or ran last."""
        (number,) = _RUNNING.unpack_from(self._memory, self._offset)
        return self._entry(number - 1) if 0 < number <= self._count else None

    def in_hand(self) -> list[Entry]:
        """What it has in hand."""
        entries = (self._entry(number) for number in range(self._count))
        return [entry for entry in entries if entry.chunk]

    def take_over(self) -> None:
        """A new process begins: what the one before had in hand is put where it can still be read."""
        length = _length(self._count)
        if self.left is not None:
            begin = self.left._offset
            self._memory[begin : begin + length] = self._memory[self._offset : self._offset + length]
        self._memory[self._offset : self._offset + length] = bytes(length)

    def _entry(self, number: int) -> Entry:
        return Entry(*_ENTRY.unpack_from(self._memory, self._first + number * _ENTRY.size))


def _length(count: int) -> int:
    return _RUNNING.size + count * _ENTRY.size


def size(counts: Sequence[int]) -> int:
    """Bytes for workers that have so many items in hand each."""
    return sum(2 * _length(count) for count in counts)


def split(memory: mmap.mmap, counts: Sequence[int]) -> list[Marks]:
    """The marks of each of them."""
    offset, marks = 0, []
    for count in counts:
        left = Marks(memory, offset + _length(count), count)
        marks.append(Marks(memory, offset, count, left))
        offset += 2 * _length(count)
    return marks
