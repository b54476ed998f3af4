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

from rebeam._actor import Actor, Ignore, Info, deadline, raises
from rebeam._errors import (
    ActorDied,
    ActorExit,
    BadCall,
    BadResult,
    CallingSelf,
    CallTimeout,
    ChildError,
    EndedOtherwise,
    MailboxFull,
    NoProc,
    NotAnActor,
    RebeamError,
    RemoteError,
    RemoteTraceback,
    SpecError,
    Stop,
    Unpicklable,
)
from rebeam._exit import Certificate, ExitReason, InHand
from rebeam._process import (
    Timer,
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
    stop,
    suspend,
    trap_exits,
    unlink,
)
from rebeam._process import exit as exit
from rebeam._ref import ActorRef, Pid, Target, partition, ref
from rebeam._runtime import after_fork, me, shutdown, whereis
from rebeam._server import (
    TIMEOUT,
    Caller,
    Continue,
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
from rebeam._spec import Backoff, ChildSpec, DynamicSupervisor, PartitionSupervisor, Supervisor, child
from rebeam._supervisors import Child, Counts, Started, SupervisorRef, supervisor

__all__ = [
    "TIMEOUT",
    "Actor",
    "ActorDied",
    "ActorExit",
    "ActorRef",
    "Backoff",
    "BadCall",
    "BadResult",
    "CallTimeout",
    "Caller",
    "CallingSelf",
    "Certificate",
    "Child",
    "ChildError",
    "ChildSpec",
    "Continue",
    "Counts",
    "Down",
    "DynamicSupervisor",
    "EndedOtherwise",
    "Exit",
    "ExitReason",
    "GenServer",
    "Hibernate",
    "Idle",
    "Ignore",
    "InHand",
    "Info",
    "MailboxFull",
    "NoProc",
    "NoReply",
    "NotAnActor",
    "PartitionSupervisor",
    "Pid",
    "RebeamError",
    "RemoteError",
    "RemoteTraceback",
    "Reply",
    "SpecError",
    "Started",
    "Stop",
    "Supervisor",
    "SupervisorRef",
    "Target",
    "Timer",
    "Unpicklable",
    "after_fork",
    "call",
    "caller",
    "cancel",
    "cast",
    "cast_after",
    "cast_every",
    "child",
    "continue_with",
    "deadline",
    "demonitor",
    "get_state",
    "hibernate",
    "idle",
    "kill",
    "link",
    "me",
    "monitor",
    "partition",
    "pid_of",
    "raises",
    "receive",
    "ref",
    "replace_state",
    "reply",
    "resume",
    "send",
    "send_after",
    "send_every",
    "shutdown",
    "stop",
    "supervisor",
    "suspend",
    "trap_exits",
    "unlink",
    "whereis",
]

# `exit` is there, too, and not listed: `from rebeam import *` must not hide Python's own.

# A traceback shows the name that a user imports.
for _public in __all__:
    if hasattr(globals()[_public], "__qualname__"):
        globals()[_public].__module__ = __name__
