"""Running supervisors, asked at run time: OTP's `supervisor:start_child/2` and its kin."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rebeam import _pending, _rebeam
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

    Its requests are carried out one at a time, in order; each waits as long as that takes. Each has a form
    to be awaited.

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
        return _started(self._ask("start_child", as_child(spec)))

    async def astart_child(self, spec: ChildSpec[A] | Supervisor | type[A]) -> Started[A]:
        """`start_child`, to be awaited."""
        return _started(await self._aask("start_child", as_child(spec)))

    def terminate_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """Stops a child and keeps its spec, unless it is temporary or the supervisor dynamic."""
        self._ask("terminate_child", _child(child))

    async def aterminate_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """`terminate_child`, to be awaited."""
        await self._aask("terminate_child", _child(child))

    def restart_child(self, child: str | ActorRef[Any] | Pid) -> Started[Any]:
        """Starts a stopped child."""
        return _started(self._ask("restart_child", _child(child)))

    async def arestart_child(self, child: str | ActorRef[Any] | Pid) -> Started[Any]:
        """`restart_child`, to be awaited."""
        return _started(await self._aask("restart_child", _child(child)))

    def delete_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """Forgets a stopped child."""
        self._ask("delete_child", _child(child))

    async def adelete_child(self, child: str | ActorRef[Any] | Pid) -> None:
        """`delete_child`, to be awaited."""
        await self._aask("delete_child", _child(child))

    def exit_child(self, child: str | ActorRef[Any] | Pid, reason: str | ExitReason) -> None:
        """Sends a child an exit signal as its parent: one that traps exits runs `terminate` and ends with it, a
        supervisor stops its children and ends with it. `kill` cannot be trapped."""
        self._ask("exit_child", _child(child), as_reason(reason))

    async def aexit_child(self, child: str | ActorRef[Any] | Pid, reason: str | ExitReason) -> None:
        """`exit_child`, to be awaited."""
        await self._aask("exit_child", _child(child), as_reason(reason))

    def which_children(self) -> list[Child]:
        """The children, in start order."""
        return [_listed(child) for child in self._ask("which_children")]

    async def awhich_children(self) -> list[Child]:
        """`which_children`, to be awaited."""
        return [_listed(child) for child in await self._aask("which_children")]

    def count_children(self) -> Counts:
        """How many children there are."""
        return Counts(**self._ask("count_children"))

    async def acount_children(self) -> Counts:
        """`count_children`, to be awaited."""
        return Counts(**await self._aask("count_children"))

    def child_spec(self, child: str | ActorRef[Any] | Pid) -> dict[str, Any]:
        """A child's spec: `id`, `kind`, `restart`, `shutdown`, `significant`, `name`, `class_name`, `start`."""
        return _spec_fields(self._ask("child_spec", _child(child)))

    async def achild_spec(self, child: str | ActorRef[Any] | Pid) -> dict[str, Any]:
        """`child_spec`, to be awaited."""
        return _spec_fields(await self._aask("child_spec", _child(child)))

    def _ask(self, what: str, child: Any = None, reason: ExitReason | None = None) -> Any:
        return _rebeam.supervisor(self._address, what, child, reason).wait(what)

    async def _aask(self, what: str, child: Any = None, reason: ExitReason | None = None) -> Any:
        return await _pending.answer(_rebeam.supervisor(self._address, what, child, reason))

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


def _listed(fields: dict[str, Any]) -> Child:
    return Child(
        id=fields["id"],
        ref=ActorRef(fields["number"]),
        pid=Pid(*fields["pid"]) if fields["pid"] else None,
        restarting=fields["is_restarting"],
        kind=_KINDS[fields["is_supervisor"]],
        class_name=fields["class_name"],
    )


def _spec_fields(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["start"]:
        spec["start"] = pickle.loads(spec["start"])
    return spec


def _started(fields: dict[str, Any]) -> Started[Any]:
    pid = fields["pid"]
    return Started(ActorRef(fields["number"]), Pid(*pid) if pid else None, fields["info"])
