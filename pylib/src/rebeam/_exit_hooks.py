"""What is done at the end of a process: what the actor has registered itself, then what the import had.

Whatever an import has set up to be done at exit (reports to be sent, lines to be flushed) concerns every process that
was forked from it, and so is done by each. What it has put on disk is there once, for all: no actor may remove it, and
the zygote does, when the node ends.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import gc
import io
import os
import stat
import sys
import time
import weakref
from typing import Any

from rebeam import _rebeam

_written_at_import: list[Any] = []
"""Files that the import has opened to write to."""

_is_imported_at = 0.0
_last_of_import = 0


class _StillUsedError(PermissionError):
    """Something is not removed by this process, since others may still use it."""


def imported(writes_files: bool) -> None:
    """The import is over: what is there belongs to all that are forked from now on.

    Args:
        writes_files: whether it has opened files to write to.
    """
    global _is_imported_at, _last_of_import
    _is_imported_at = _rebeam.file_time()
    finalize: Any = weakref.finalize
    _last_of_import = next(finalize._index_iter)
    if writes_files:
        _written_at_import.extend(it for it in gc.get_objects() if issubclass(type(it), _io._IOBase))
        for file in _written_at_import:
            with contextlib.suppress(Exception):
                # What is in it is written once, and not by each that is forked.
                file.flush()


def let_import_pass() -> None:
    """Waits until files that are made from now on are younger than those of the import: a few milliseconds."""
    while _rebeam.file_time() == _is_imported_at:
        time.sleep(0.0005)


def forked() -> None:
    """In a new process: what is registered from now on is its own."""
    # Hooks run in reverse order.
    atexit.register(_begin_of_import)


def run(is_import: bool = False) -> None:
    """Runs all hooks, errors of which are printed, and finishes files that nobody has closed.

    Args:
        is_import: whether this is the process that everything was imported in.
    """
    atexit._run_exitfuncs()
    # What is written around the import's own files is for that process to finish, once.
    _finish_files(
        _written_at_import if is_import else [it for it in _written_at_import if type(it).__module__ == "_io"]
    )


def _finish_files(of_import: list[Any]) -> None:
    """Does for open files what Python does as it takes all objects apart, for which no process of ours has time."""
    tempfile, zipfile = (getattr(sys.modules.get(name), kind, ()) for name, kind in _ARCHIVES_AND_TEMPORARIES)
    wrappers, texts, buffers, temporaries = [], [], [], []
    for found in (*of_import, *gc.get_objects()):
        # By its type alone: a proxy would do something when it is asked for its class.
        kind = type(found)
        if issubclass(kind, io.TextIOWrapper):
            texts.append(found)
        elif issubclass(kind, (io.BufferedWriter, io.BufferedRandom)):
            buffers.append(found)
        elif (issubclass(kind, _io._IOBase) and kind.__module__ != "_io") or issubclass(kind, zipfile):
            wrappers.append(found)
        elif issubclass(kind, tempfile):
            temporaries.append(found)
    # What is built on others comes first; texts may be, and others on them.
    finishes = (texts, "flush"), (wrappers, "close"), (texts, "flush"), (buffers, "flush"), (temporaries, "close")
    for files, finish in finishes:
        for file in files:
            # Such objects are of anybody's making, and each is on its own.
            with contextlib.suppress(Exception):
                if files is temporaries or _is_on_disk(file):
                    getattr(file, finish)()


_ARCHIVES_AND_TEMPORARIES = ("tempfile", "_TemporaryFileCloser"), ("zipfile", "ZipFile")


def _is_on_disk(file: Any) -> bool:
    """Whether it is sure that writing to it does not wait for anybody."""
    raw = file.fp if not hasattr(file, "fileno") else file
    return raw is not None and stat.S_ISREG(os.fstat(raw.fileno()).st_mode)


def _begin_of_import() -> None:
    finalize: Any = weakref.finalize
    for info in finalize._registry.values():
        if info.index <= _last_of_import:
            info.atexit = False
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, _StillUsedError):
            report(unraisable)

    sys.unraisablehook = report_others
    sys.addaudithook(_keep)


def _keep(event: str, args: tuple[Any, ...]) -> None:
    """Refuses to remove what was there before this process."""
    if event not in ("os.remove", "os.rmdir", "shutil.rmtree"):
        return
    path, directory = args[0], args[1] if len(args) > 1 else -1
    if directory not in (-1, None):
        # Below a directory that was looked at already.
        return
    path = os.fsdecode(path)
    # Where the system does not know, it may have been there.
    if os.path.lexists(path) and (_rebeam.birth_time(path) or 0.0) <= _is_imported_at:
        raise _StillUsedError(f"`{path}` is removed when the node ends")
