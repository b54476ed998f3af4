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

_NOT_NEEDED = ("threading", "logging", "random", "concurrent.futures.thread", "rebeam._runtime")
"""Modules whose hooks have nothing to do in a new worker. (Generators of random numbers are seeded by `_boot`.)"""


class _Hooks(NamedTuple):
    before: Callable[[], object] | None
    after_in_parent: Callable[[], object] | None
    after_in_child: Callable[[], object] | None


_all: list[_Hooks] = []
_needed: list[_Hooks] = []
_now = _needed


def watch() -> None:
    """Takes note of every hook from now on, and runs only those that are needed until `run_all`."""
    register = os.register_at_fork
    register(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    os.register_at_fork = _register


def run_all() -> None:
    """From now on a fork is an actor's own."""
    global _now
    _now = _all


def _register(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    hooks = _Hooks(before, after_in_parent, after_in_child)
    _all.append(hooks)
    if sys._getframe(1).f_globals.get("__name__") not in _NOT_NEEDED:
        _needed.append(hooks)


def _before() -> None:
    for hooks in reversed(tuple(_now)):
        if hooks.before is not None:
            hooks.before()


def _after_in_parent() -> None:
    for hooks in tuple(_now):
        if hooks.after_in_parent is not None:
            hooks.after_in_parent()


def _after_in_child() -> None:
    for hooks in tuple(_now):
        if hooks.after_in_child is not None:
            hooks.after_in_child()


if sys.argv == ["-c", "zygote"] and "REBEAM_NODE" in os.environ:
    watch()
