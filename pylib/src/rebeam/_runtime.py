"""What an actor knows about itself and its node at run time."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from rebeam import _rebeam

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebeam._ref import ActorRef, Pid

_after_fork: list[Callable[[], object]] = []


class Identity:
    """Who this process is. There is one, made when the worker has shaken hands.

    Attributes:
        name: the actor's registered name, or None.
        path: its name, or its path in the tree.
        pid: its incarnation.
        restarts: how often the actor was started before.
        version: the version of the code that it runs (see `version`).
        ref: a handle on itself that follows restarts; an actor has it, typed, as `self.ref`.
    """

    def __init__(self, pid: Pid, ref: ActorRef[Any], path: str, named: bool, restarts: int, version: int) -> None:
        self.pid = pid
        self.ref = ref
        self.path = path
        self.name = path if named else None
        self.restarts = restarts
        self.version = version

    def __repr__(self) -> str:
        return f"<{self.path} {self.pid}>"


_identity: Identity | None = None

is_of_node = False
"""Whether this process was started by a node, as an actor or to make actors."""

identities: dict[int, Identity] = {}
"""Who a thread is, by its number, where actors are threads (`rebeam.testing`)."""

no_exit = threading.Lock()
"""Held while no exit may be raised in an actor that is a thread: half made, an event loop cannot be cleaned up."""


def become(identity: Identity) -> None:
    """Makes this process an actor, and its own forked helpers not."""
    global _identity
    _identity = identity
    see_to_forks()
    for hook in _after_fork:
        hook()


_sees_to_forks = False


def see_to_forks() -> None:
    """Registers what is to be done when this process forks; once: in the zygote, or in the worker."""
    global _sees_to_forks
    if not _sees_to_forks:
        _sees_to_forks = True
        before, after = _rebeam.pin_memory, _rebeam.forked
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=_detach)


def _detach() -> None:
    """Lets go of everything of the actor's in a process that it forked, its fault handler's file too."""
    import faulthandler

    _rebeam.detach_after_fork()
    boot: Any = sys.modules.get("rebeam._boot")
    if boot is not None:
        boot.forget_sigterm()
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)


def me() -> Identity:
    """Who this actor is.

    Raises:
        NotAnActor: outside an actor.
    """
    own = identities.get(threading.get_ident()) if identities else _identity
    if own is None or not _rebeam.is_attached():
        from rebeam import _errors

        raise _errors.not_an_actor(_identity is not None)
    return own


def is_here(actor: Identity) -> bool:
    """Whether an actor that this process was made for, or a thread of it, is still there."""
    return actor is _identity or actor in identities.values()


def version() -> int:
    """The version of the application's code that this actor runs: 1 is what the node has started with, and each reload
    makes another.

    Raises:
        NotAnActor: outside an actor.
    """
    return me().version


def shutdown() -> None:
    """Stops the whole node in good order, as Ctrl-C would; returns as soon as that has been ordered.

    Raises:
        NotAnActor: outside an actor.
    """
    _rebeam.request_down()


def current_message() -> _rebeam.Message | None:
    """The message that the calling handler has in hand, or None outside a handler.

    It has `method`, `sender` (a name or path), `delivery` (which delivery of this message it is, from 1), `is_call`,
    and `time_left` (seconds until nobody waits for the answer any more, or None).
    """
    return _rebeam.current()


def after_fork(hook: Callable[[], object]) -> Callable[[], object]:
    """Registers a function to be run in every new worker before its `init`: for what must not be shared by processes.

    Random generators that were given no seed, and places in files that are open to be read, need none.
    """
    _after_fork.append(hook)
    return hook
