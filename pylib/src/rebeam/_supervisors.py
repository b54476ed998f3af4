"""Running supervisors, asked at run time: OTP's `supervisor:start_child/2` and its kin."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rebeam import _rebeam
from rebeam._exit import ExitReason, as_reason
from rebeam._ref import ActorRef, Pid
from rebeam._spec import as_child

if TYPE_CHECKING:
    from rebeam._actor import Actor
    from rebeam._spec import ChildSpec, Supervisor

A = TypeVar("A", bound="Actor")


class Started(NamedTuple, Generic[A]):
    """A child that was started.

    Attributes:
        ref: a handle on it that follows restarts.
        pid: its incarnation; None if its `init` returned `Ignore`.
        info: what its `init` returned in `Info`, else None.
    """

    ref: ActorRef[A]
    pid: Pid | None
    info: Any


class Child(NamedTuple):
    """One child, as its supervisor lists it.

    Attributes:
        id: its id; empty under a dynamic supervisor.
        ref: a handle on it.
        pid: its incarnation while it is alive, else None.
        restarting: whether it is between two tries of a restart.
        kind: `worker` or `supervisor`.
        class_name: module and class.
    """

    id: str
    ref: ActorRef[Any]
    pid: Pid | None
    restarting: bool
    kind: str
    class_name: str


class Counts(NamedTuple):
    """How many children a supervisor has.

    Attributes:
        specs: all.
        active: alive now.
        supervisors: supervisors, alive or not.
        workers: actors, alive or not.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


class SupervisorRef:
    """A handle on a supervisor of the tree, by its name, by its path (`pool/inner`), or by `root`.

    Its requests are carried out one at a time, in order; each waits as long as that takes.

    Raises (all methods):
        NoProc: there is no such supervisor, or it is not running.
        ChildError: it says no; `kind` tells why.
    """

    __slots__ = ("_address",)

    def __init__(self, address: str | int | Pid) -> None:
        self._address = address

    def start_child(self, spec: ChildSpec[A] | Supervisor | type[A]) -> Started[A]:
        """Starts a child, appends it to the others, and returns when its `init` has.

        Raises:
            SpecError: the spec makes no sense here.
        """
        return _started(_rebeam.supervisor(self._address, "start_child", as_child(spec)))

    def terminate_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """Stops a child and keeps its spec, unless it is temporary or the supervisor dynamic."""
        _rebeam.supervisor(self._address, "terminate_child", _child(child))

    def restart_child(self, child: str | ActorRef[Any] | Pid) -> Started[Any]:
        """Starts a stopped child."""
        return _started(_rebeam.supervisor(self._address, "restart_child", _child(child)))

    def delete_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """Forgets a stopped child."""
        _rebeam.supervisor(self._address, "delete_child", _child(child))

    def exit_child(self, child: str | ActorRef[Any] | Pid, reason: str | ExitReason) -> None:
        """Sends a child an exit signal as its parent: one that traps exits runs `terminate` and ends with it, a
        supervisor stops its children and ends with it. `kill` cannot be trapped."""
        _rebeam.supervisor(self._address, "exit_child", _child(child), as_reason(reason))

    def which_children(self) -> list[Child]:
        """The children, in start order."""
        found = _rebeam.supervisor(self._address, "which_children")
        return [
            Child(
                id=child["id"],
                ref=ActorRef(child["number"]),
                pid=Pid(*child["pid"]) if child["pid"] else None,
                restarting=child["is_restarting"],
                kind=_KINDS[child["is_supervisor"]],
                class_name=child["class_name"],
            )
            for child in found
        ]

    def count_children(self) -> Counts:
        """How many children there are."""
        return Counts(**_rebeam.supervisor(self._address, "count_children"))

    def child_spec(self, child: str | ActorRef[Any] | Pid) -> dict[str, Any]:
        """A child's spec: `id`, `kind`, `restart`, `shutdown`, `significant`, `name`, `class_name`, `start`."""
        spec: dict[str, Any] = _rebeam.supervisor(self._address, "child_spec", _child(child))
        if spec["start"]:
            spec["start"] = pickle.loads(spec["start"])
        return spec

    def __reduce__(self) -> tuple[Any, ...]:
        return SupervisorRef, (self._address,)

    def __repr__(self) -> str:
        return f"<SupervisorRef {self._address}>"


_KINDS = {False: "worker", True: "supervisor"}


def supervisor(to: str | Pid | ActorRef[Any]) -> SupervisorRef:
    """A handle on a supervisor: by its name or path, by its incarnation, or as another supervisor's child."""
    return SupervisorRef(to._address if isinstance(to, ActorRef) else to)  # type: ignore[arg-type]


def _child(child: str | ActorRef[Any] | Pid) -> Any:
    return child._address if isinstance(child, ActorRef) else child


def _started(fields: dict[str, Any]) -> Started[Any]:
    pid = fields["pid"]
    return Started(ActorRef(fields["number"]), Pid(*pid) if pid else None, fields["info"])
