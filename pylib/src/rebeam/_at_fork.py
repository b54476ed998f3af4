"""Which hooks run at a fork (`os.register_at_fork`). Imported first of all, so that it sees the standard library's.

A zygote has one thread, and its forks go on in it: locks and threads need no putting right there, and each hook that
runs all the same makes pages that could be shared the worker's own. So the standard library's hooks are left out of the
forks that make workers, and run in those that an actor makes.

A hook may register hooks: those run from the next fork on, as with CPython's own list, which is copied for each fork.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_ABOUT_ACTORS = ("rebeam._runtime",)
"""Modules whose hooks have nothing to do in a new worker."""

_ABOUT_THREADS = ("threading", "logging", "random", "concurrent.futures.thread")
"""Modules whose hooks have nothing to do where there is one thread. (Random numbers are seeded by `_generators`.)"""


class _Hooks(NamedTuple):
    module: str | None
    before: Callable[[], object] | None
    after_in_parent: Callable[[], object] | None
    after_in_child: Callable[[], object] | None


_all: list[_Hooks] = []
_left_out: tuple[str, ...] = _ABOUT_ACTORS + _ABOUT_THREADS
"""Modules whose hooks do not run."""


def watch() -> None:
    """Takes note of every hook from now on, and runs only those that are needed until `run_all`."""
    register = os.register_at_fork
    register(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    os.register_at_fork = _register


def has_threads() -> None:
    """From now on a fork is a worker still, but of a process with several threads."""
    global _left_out
    _left_out = _ABOUT_ACTORS


def run_all() -> None:
    """From now on a fork is an actor's own."""
    global _left_out
    _left_out = ()


def _register(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    module = sys._getframe(1).f_globals.get("__name__")
    _all.append(_Hooks(module, before, after_in_parent, after_in_child))


def _running() -> list[_Hooks]:
    return [hooks for hooks in _all if hooks.module not in _left_out]


def _before() -> None:
    for hooks in reversed(_running()):
        if hooks.before is not None:
            hooks.before()


def _after_in_parent() -> None:
    for hooks in _running():
        if hooks.after_in_parent is not None:
            hooks.after_in_parent()


def _after_in_child() -> None:
    for hooks in _running():
        if hooks.after_in_child is not None:
            hooks.after_in_child()


if sys.argv == ["-c", "zygote"] and "REBEAM_NODE" in os.environ:
    watch()
