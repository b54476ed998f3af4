"""Reads a source in a thread of its own, a little ahead of need: a source may block."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

AHEAD = 1000
"""Items that are read ahead of need."""


class SourceError(Exception):
    """The source has failed: its cause is what it raised."""


class Reader:
    """The thread, and what it has read."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], Iterator[Any]], wake: Callable[[], None]
    ) -> None:
        self._loop, self._make, self._wake = loop, make, wake
        self._changed = threading.Condition()
        self._read: deque[Any] = deque()
        self._is_wanted = False
        self._has_ended = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="source", daemon=True).start()

    def take(self) -> list[Any] | None:
        """What was read: some, none for now, or None at the end. Whoever gets none is woken when there is some.

        Raises:
            SourceError: what came before it was given; this is behind it.
        """
        with self._changed:
            found = list(self._read)
            self._read.clear()
            self._changed.notify()
            if found:
                return found
            if self._error is not None:
                raise SourceError from self._error
            if self._has_ended:
                return None
            self._is_wanted = True
            return []

    def _run(self) -> None:
        try:
            for item in self._make():
                with self._changed:
                    while len(self._read) >= AHEAD:
                        self._changed.wait()
                    self._read.append(item)
                    self._tell()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._has_ended = True
            self._tell()

    def _tell(self) -> None:
        if self._is_wanted:
            self._is_wanted = False
            self._loop.call_soon_threadsafe(self._wake)
