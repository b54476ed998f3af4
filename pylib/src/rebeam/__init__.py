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

from rebeam._actor import Actor, Ignore, raises
from rebeam._errors import (
    ActorDied,
    BadCall,
    BadResult,
    CallingSelf,
    CallTimeout,
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
from rebeam._ref import ActorRef, Pid, Target, ref
from rebeam._runtime import after_fork, me, shutdown, whereis
from rebeam._spec import ChildSpec, Supervisor, child

__all__ = [
    "Actor",
    "ActorDied",
    "ActorRef",
    "BadCall",
    "BadResult",
    "CallTimeout",
    "CallingSelf",
    "Certificate",
    "ChildSpec",
    "ExitReason",
    "Ignore",
    "InHand",
    "MailboxFull",
    "NoProc",
    "NotAnActor",
    "Pid",
    "RebeamError",
    "RemoteError",
    "RemoteTraceback",
    "SpecError",
    "Stop",
    "Supervisor",
    "Target",
    "Unpicklable",
    "after_fork",
    "child",
    "me",
    "raises",
    "ref",
    "shutdown",
    "whereis",
]

# A traceback shows the name that a user imports.
for _public in __all__:
    globals()[_public].__module__ = __name__
