"""What an actor does right now, for the supervisor to read: the stacks of its threads, and of asyncio's tasks.

The stacks of threads are written by `faulthandler`, even where a process hangs in C. Those of tasks need Python to run:
an event loop that waits for what does not come is woken for it. It must not know what the stacks are wanted for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from rebeam import _rebeam

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_TASKS = 50
"""Tasks that are shown."""

_fd = -1


def write_to(fd: int) -> None:
    """Has stacks written to a descriptor at a fault, and at the supervisor's signal."""
    global _fd
    _fd = fd
    faulthandler.enable(fd)
    faulthandler.register(_rebeam.DUMP_SIGNAL, fd)
    signal.signal(_rebeam.TASKS_SIGNAL, _write_tasks)
    # What waits in C goes on waiting, but for an event loop.
    signal.siginterrupt(_rebeam.TASKS_SIGNAL, False)


def _write_tasks(number: int, frame: object) -> None:
    events: Any = sys.modules.get("asyncio.events")
    loop = events and events._get_running_loop()
    if not loop or not _rebeam.is_attached():
        return
    import asyncio

    # Tasks are of anybody's making, and this comes in the midst of what they do. There may be no room for more, either.
    with contextlib.suppress(Exception):
        tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
        lines = [line for task in tasks[:MOST_TASKS] for line in _lines(task)]
        if len(tasks) > MOST_TASKS:
            lines.append(f"{len(tasks) - MOST_TASKS} more tasks")
        os.write(_fd, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


def _lines(task: Any) -> Iterator[str]:
    yield f"Task {task.get_name()!r} (most recent call first):"
    frames = []
    waits = task.get_coro()
    # From the task's own coroutine to the innermost that it awaits.
    while waits is not None:
        found = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None) or getattr(waits, "ag_frame", None)
        if found is not None:
            frames.append(f'  File "{found.f_code.co_filename}", line {found.f_lineno} in {found.f_code.co_name}')
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    yield from reversed(frames)
