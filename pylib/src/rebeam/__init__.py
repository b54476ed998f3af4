"""Re:BEAM: supervised actors, each in an OS process of its own.

An application is a tree, run by `rebeam up app:tree`:

    from rebeam import Actor, Supervisor, child

    class Counter(Actor):
        def init(self, start: int = 0) -> None:
            self.n = start

        def incr(self, by: int = 1) -> int:
            self.n += by
            return self.n

    tree = Supervisor([child(Counter, 10, name="counter")])

Inside an actor, `rebeam.ref(Counter, "counter").call(Counter.incr, 2)` asks another one.
"""

import typing as _typing

from rebeam import _at_fork  # noqa: F401  (first of all)
from rebeam._actor import Actor, Ignore, Info, deadline, delivery, raises
from rebeam._errors import (
    ActorDied,
    ActorExit,
    AlreadyRegistered,
    BadCall,
    BadResult,
    CallTimeout,
    ChildError,
    DeadlockError,
    EndedOtherwise,
    MailboxFull,
    MessageTooLarge,
    NoProc,
    NoTable,
    NotAnActor,
    NotRegistered,
    RebeamError,
    RemoteError,
    RemoteTraceback,
    Restarting,
    SnapshotEnded,
    SpecError,
    Stop,
    StoreRestarted,
    StoreUnavailable,
    TableAccess,
    TableExists,
    TableFull,
    Unpicklable,
)
from rebeam._exit import Certificate, ExitReason, InHand
from rebeam._functions import (
    aget_or_start,
    aspawn,
    astart,
    child_options,
    function,
    get_or_start,
    module,
    script,
    spawn,
    start,
)
from rebeam._options import Backoff
from rebeam._pending import Pending
from rebeam._process import (
    Timer,
    acall,
    acast,
    aget_state,
    areceive,
    areplace_state,
    aresume,
    asend,
    astop,
    asuspend,
    call,
    cancel,
    cast,
    cast_after,
    cast_every,
    demonitor,
    get_state,
    kill,
    link,
    monitor,
    pid_of,
    receive,
    replace_state,
    resume,
    send,
    send_after,
    send_every,
    set_ready,
    stop,
    suspend,
    trap_exits,
    unlink,
    watch_dead_letters,
)
from rebeam._process import exit as exit
from rebeam._rebeam import Message, share
from rebeam._ref import ActorRef, Pid, Target, Via, partition, ref
from rebeam._registry import (
    Entry,
    Group,
    Joined,
    Left,
    Registered,
    Registry,
    Unregistered,
    Watch,
    await_for,
    group,
    groups,
    register,
    registry,
    unregister,
    unwatch,
    via,
    wait_for,
    watch,
    whereis,
)
from rebeam._runtime import after_fork, current_message, me, shutdown, version
from rebeam._server import (
    TIMEOUT,
    Caller,
    Continue,
    DeadLetter,
    Down,
    Exit,
    GenServer,
    Hibernate,
    Idle,
    NoReply,
    Reply,
    caller,
    continue_with,
    hibernate,
    idle,
    reply,
)
from rebeam._spec import ChildSpec, DynamicSupervisor, PartitionSupervisor, Supervisor, child
from rebeam._stream import Stream
from rebeam._supervisors import Child, Counts, Started, SupervisorRef, supervisor

if _typing.TYPE_CHECKING:
    from rebeam._buffers import writable
    from rebeam._client import ActorInfo, Node, connect
    from rebeam._executor import Executor
    from rebeam._loop import background
    from rebeam._programs import Program, ProgramError, ProgramNotification, ProgramOutput, ProgramRef, program
    from rebeam._run import run
    from rebeam._state import code_change
    from rebeam._tables import Table, TableChange, TableInfo, TableSnapshot, TableTransfer, table, tables
    from rebeam._tasks import Outcome, Task, atask, task

__all__ = [
    "TIMEOUT",
    "Actor",
    "ActorDied",
    "ActorExit",
    "ActorInfo",
    "ActorRef",
    "AlreadyRegistered",
    "Backoff",
    "BadCall",
    "BadResult",
    "CallTimeout",
    "Caller",
    "Certificate",
    "Child",
    "ChildError",
    "ChildSpec",
    "Continue",
    "Counts",
    "DeadLetter",
    "DeadlockError",
    "Down",
    "DynamicSupervisor",
    "EndedOtherwise",
    "Entry",
    "Executor",
    "Exit",
    "ExitReason",
    "GenServer",
    "Group",
    "Hibernate",
    "Idle",
    "Ignore",
    "InHand",
    "Info",
    "Joined",
    "Left",
    "MailboxFull",
    "Message",
    "MessageTooLarge",
    "NoProc",
    "NoReply",
    "NoTable",
    "Node",
    "NotAnActor",
    "NotRegistered",
    "Outcome",
    "PartitionSupervisor",
    "Pending",
    "Pid",
    "Program",
    "ProgramError",
    "ProgramNotification",
    "ProgramOutput",
    "ProgramRef",
    "RebeamError",
    "Registered",
    "Registry",
    "RemoteError",
    "RemoteTraceback",
    "Reply",
    "Restarting",
    "SnapshotEnded",
    "SpecError",
    "Started",
    "Stop",
    "StoreRestarted",
    "StoreUnavailable",
    "Stream",
    "Supervisor",
    "SupervisorRef",
    "Table",
    "TableAccess",
    "TableChange",
    "TableExists",
    "TableFull",
    "TableInfo",
    "TableSnapshot",
    "TableTransfer",
    "Target",
    "Task",
    "Timer",
    "Unpicklable",
    "Unregistered",
    "Via",
    "Watch",
    "acall",
    "acast",
    "after_fork",
    "aget_or_start",
    "aget_state",
    "areceive",
    "areplace_state",
    "aresume",
    "asend",
    "aspawn",
    "astart",
    "astop",
    "asuspend",
    "atask",
    "await_for",
    "background",
    "call",
    "caller",
    "cancel",
    "cast",
    "cast_after",
    "cast_every",
    "child",
    "child_options",
    "code_change",
    "connect",
    "continue_with",
    "current_message",
    "deadline",
    "delivery",
    "demonitor",
    "function",
    "get_or_start",
    "get_state",
    "group",
    "groups",
    "hibernate",
    "idle",
    "kill",
    "link",
    "me",
    "module",
    "monitor",
    "partition",
    "pid_of",
    "program",
    "raises",
    "receive",
    "ref",
    "register",
    "registry",
    "replace_state",
    "reply",
    "resume",
    "run",
    "script",
    "send",
    "send_after",
    "send_every",
    "set_ready",
    "share",
    "shutdown",
    "spawn",
    "start",
    "stop",
    "supervisor",
    "suspend",
    "table",
    "tables",
    "task",
    "trap_exits",
    "unlink",
    "unregister",
    "unwatch",
    "version",
    "via",
    "wait_for",
    "watch",
    "watch_dead_letters",
    "whereis",
    "writable",
]

_LATER = {
    "ActorInfo": "_client",
    "Executor": "_executor",
    "Node": "_client",
    "Outcome": "_tasks",
    "Program": "_programs",
    "ProgramError": "_programs",
    "ProgramNotification": "_programs",
    "ProgramOutput": "_programs",
    "ProgramRef": "_programs",
    "Table": "_tables",
    "TableChange": "_tables",
    "TableInfo": "_tables",
    "TableSnapshot": "_tables",
    "TableTransfer": "_tables",
    "Task": "_tasks",
    "atask": "_tasks",
    "background": "_loop",
    "code_change": "_state",
    "connect": "_client",
    "program": "_programs",
    "run": "_run",
    "table": "_tables",
    "tables": "_tables",
    "task": "_tasks",
    "writable": "_buffers",
}
"""What few need, and its module, which is imported when it is asked for."""


def __getattr__(name: str) -> _typing.Any:
    if name not in _LATER:
        raise AttributeError(f"module `rebeam` has no attribute `{name}`")
    from importlib import import_module

    value = getattr(import_module(f"rebeam.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


# `exit` is there, too, and not listed: `from rebeam import *` must not hide Python's own.

# A traceback shows the name that a user imports.
for _public in __all__:
    if hasattr(globals().get(_public), "__qualname__"):
        globals()[_public].__module__ = __name__
