"""Every error that Re:BEAM raises, and how `_rebeam` makes them."""

from __future__ import annotations

from pickle import PicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rebeam._exit import Certificate, ExitReason
    from rebeam._ref import Pid


class _NoReply:
    """The type of `NO_REPLY`."""

    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY: Any = _NoReply()
"""Stands for: there is no answer."""


class RebeamError(Exception):
    """The base of all errors that Re:BEAM itself raises."""


class SpecError(RebeamError, ValueError):
    """A child or supervisor is declared with a value that makes no sense."""


class NotAnActor(RebeamError, RuntimeError):
    """What only an actor can do was tried elsewhere: in plain Python, or in a process that an actor forked."""


class NoProc(RebeamError, LookupError):
    """There is no such actor, or it is down for good."""


class AlreadyRegistered(RebeamError):
    """A name or a unique key has a holder.

    Attributes:
        pid: who; None if it is a name of the tree whose actor is between two lives, or down.
    """

    def __init__(self, text: str, pid: Pid | None = None) -> None:
        super().__init__(text)
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return AlreadyRegistered, (str(self), self.pid)


class NotRegistered(RebeamError, LookupError):
    """There is no such entry of this actor's to change or to take out."""


class NoTable(RebeamError, LookupError):
    """There is no table of this name, or no more."""


class TableExists(RebeamError):
    """A table is to be made under a name that another one has."""


class TableAccess(RebeamError, PermissionError):
    """A table is its owner's to write to, or, if it is private, to read."""


class TableFull(RebeamError, MemoryError):
    """The memory for tables is used up, or what this one may have. Nothing was changed."""


class SnapshotEnded(RebeamError):
    """A snapshot, or a walk over a table, was open for more than 10 s while the table was written to: it has ended."""


class StoreRestarted(RebeamError):
    """The process that keeps the rows has ended with a change in hand: it may be done or not. All else is there."""


class StoreUnavailable(RebeamError):
    """There is no process that keeps rows, and there will be none."""


class ActorDied(RebeamError):
    """The actor ended before it answered.

    Attributes:
        certificate: what is known about its end.
        begun: whether its handler had begun, as far as is known. A call that was not can be made again.
    """

    def __init__(self, certificate: Certificate, begun: bool = True) -> None:
        self.certificate = certificate
        self.begun = begun
        text = f"`{certificate.actor}` died: {certificate.reason}"
        if certificate.in_hand:
            text += f", with `{certificate.in_hand[0].method}` in hand"
        super().__init__(text)

    @property
    def reason(self) -> ExitReason:
        """Why it ended."""
        return self.certificate.reason

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorDied, (self.certificate, self.begun)


class CallTimeout(RebeamError, TimeoutError):
    """The answer did not come in time. The callee is not told, and finishes what it does (as OTP's `call`)."""


class DeadlockError(RebeamError):
    """A call, or a send to a full mailbox, would have waited forever: it closes a cycle of waiting actors.

    Nothing was sent. The others of the cycle go on waiting for this actor, and get their answers when it goes on.

    Attributes:
        cycle: who waits for whom, this call first: `a.call(B.x)`, `b.call(C.y)`, …; and `start of b` where one waits
            for an actor that is not up.
    """

    def __init__(self, text: str, cycle: list[str] | None = None) -> None:
        super().__init__(text)
        self.cycle = cycle or []

    def __reduce__(self) -> tuple[Any, ...]:
        return DeadlockError, (str(self), self.cycle)


class Restarting(RebeamError):
    """The actor is being restarted, and takes no calls meanwhile (`while_restarting="fail"`)."""


class MessageTooLarge(RebeamError, ValueError):
    """A message is larger than a message may be. Nothing was sent."""


class MailboxFull(RebeamError):
    """There was no room in the receiver's mailbox for as long as the sender would wait."""


class BadCall(RebeamError, TypeError):
    """There is no such method, or the arguments do not fit it. The callee was not harmed."""


class BadResult(RebeamError, PicklingError):
    """The method's result cannot be sent. The callee was not harmed."""


class Unpicklable(RebeamError, PicklingError, TypeError):
    """An argument cannot be pickled. Nothing was sent."""


class RemoteError(RebeamError):
    """An exception of another actor whose own class cannot be used here.

    Attributes:
        kind: the name of its class.
        message: its text.
        remote_traceback: the formatted traceback from where it was raised, with notes, causes and source lines.
        notes: what `add_note` had added to it.
        chain: the exceptions that led to it, as `Class: text`, the nearest first.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        remote_traceback: str,
        notes: list[str] | None = None,
        chain: list[str] = [],  # noqa: B006
    ) -> None:
        if notes is None:
            notes = []
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message
        self.remote_traceback = remote_traceback
        self.notes = list(notes)
        self.chain = list(chain)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteError, (self.kind, self.message, self.remote_traceback, self.notes, self.chain)


class RemoteTraceback(Exception):
    """The cause of an exception that came from another actor; its text is the traceback from there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0].rstrip()}\n"""'


class ChildError(RebeamError):
    """A supervisor did not do what it was asked about a child.

    Attributes:
        kind: `not_found`, `running`, `restarting`, `already_started`, `already_present`, `start_failed`,
            `max_children`, `unsupported`, `ending`, `bad_spec` or `waiting_for_you`.
        pid: of whoever has the id or the name already, for `already_started`.
        reason: why the start failed, for `start_failed`.
        child: the path of the child that did not start, for `start_failed`: the one that was asked for, or, of a
            supervisor, the one below it that kept it from starting.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        pid: Pid | None = None,
        reason: ExitReason | None = None,
        child: str | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.pid = pid
        self.reason = reason
        self.child = child

    def __reduce__(self) -> tuple[Any, ...]:
        return ChildError, (self.kind, str(self), self.pid, self.reason, self.child)


class EndedOtherwise(RebeamError):
    """An actor that was stopped ended for another reason than the one given.

    Attributes:
        reason: that reason.
    """

    def __init__(self, reason: ExitReason) -> None:
        super().__init__(f"it ended with {reason}")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return EndedOtherwise, (self.reason,)


class Stop(BaseException):
    """Raised in a method, or returned by a callback of a `GenServer`, to end the actor in good order.

    `terminate` runs and no error is reported.

    Args:
        reason: `normal` (a transient child is not restarted), `shutdown` (the same), or any text of your own (an
            abnormal end).
        detail: said with `shutdown`.
        reply: what the caller gets, if a call is in hand. Without it the caller gets `ActorDied` with the reason.
    """

    def __init__(self, reason: str = "normal", *, detail: str = "", reply: Any = NO_REPLY) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.reply = reply


class ActorExit(KeyboardInterrupt):
    """An exit signal came that this actor does not trap (see `trap_exits`).

    It unwinds the stack, so that `finally` runs; `terminate` does not, and nothing else is handled. Do not catch it.
    """


class BadReturn(BaseException):
    """A callback returned what none may return: the actor ends with `bad_return`."""


def child_error(
    kind: str,
    text: str,
    pid: tuple[int, int, int] | None,
    reason: tuple[str, str, str | None] | None,
    child: str | None,
) -> RebeamError:
    from rebeam._exit import ExitReason
    from rebeam._ref import Pid

    if kind == "bad_spec":
        return SpecError(text)
    return ChildError(kind, text, Pid(*pid) if pid else None, ExitReason(*reason) if reason else None, child)


def no_supervisor(to: object) -> NoProc:
    return NoProc(f"there is no supervisor `{to}`, or it is not running")


def _names(similar: list[str]) -> str:
    return f"; did you mean {' or '.join(f'`{name}`' for name in similar)}?" if similar else ""


def no_proc(target: str, similar: list[str], is_down: bool) -> NoProc:
    if is_down:
        return NoProc(f"`{target}` is down")
    return NoProc(f"there is no actor `{target}`{_names(similar)}")


def registry_error(kind: str, registry: str, key: str, pid: Pid | None, text: str) -> Exception:
    place = f"`{key}`" if registry == "names" else f"group `{key}`" if registry == "groups" else f"`{registry}[{key}]`"
    match kind:
        case "no_registry":
            return NoProc(f"there is no registry `{registry}`")
        case "already_registered":
            holder = f"is held by {pid}" if pid else "is the name of an actor of the tree"
            return AlreadyRegistered(f"{place} {holder}", pid)
        case "not_registered" if registry == "groups":
            return NotRegistered(f"it has not joined {place}")
        case "not_registered":
            return NotRegistered(
                f"it has no entry {place}" if registry != "names" else f"nobody is registered as {place}"
            )
        case "no_proc":
            return NoProc("there is no such actor")
        case "not_yours" if registry == "names":
            return ValueError(f"{place} is a name of the tree: it stays with its actor")
        case "not_yours":
            return ValueError("an actor enters itself, and nobody else")
        case _:
            return ValueError(text)


def table_error(kind: str, table: str, text: str) -> Exception:
    match kind:
        case "no_table":
            hint = f'; `rebeam.table("{table}", kind="set")` makes it, or `rebeam.Table("{table}")` in the tree'
            return NoTable(f"there is no table `{table}`{hint}")
        case "exists":
            return TableExists(f"there is a table `{table}` already")
        case "no_owner":
            return NoProc(f"there is no such actor to own the table `{table}`, now or as its heir")
        case "not_yours":
            return TableAccess(f"the table `{table}` is its owner's to write to, or, if it is private, to read")
        case "full":
            return TableFull(f"the table `{table}` cannot grow: the memory for all tables is used up")
        case "at_limit":
            return TableFull(f"the table `{table}` has as many bytes as its `max_bytes` allows")
        case "snapshot_ended":
            return SnapshotEnded(
                f"the snapshot of `{table}` was open for more than 10 s, while the table was written to"
            )
        case "restarted":
            return StoreRestarted(f"the store of tables has ended: the change of `{table}` may be done or not")
        case "unavailable":
            return StoreUnavailable(f"there are no tables: {text}")
        case _:
            return ValueError(f"`{table}`: {text}")


def actor_died(fields: dict[str, Any], begun: bool) -> ActorDied:
    from rebeam._exit import certificate

    return ActorDied(certificate(fields), begun)


def call_timeout(target: str, state: str, method: str | None, busy: float, waiting: int) -> CallTimeout:
    doing = f"busy {busy:.1f} s in `{method}`" if method else state
    return CallTimeout(f"`{target}` did not answer in time: {doing}, {waiting} waiting")


def stopping_self(target: object) -> DeadlockError:
    return DeadlockError(f"the stop of `{target}` would wait for the actor that asks; `raise rebeam.Stop()` instead")


def deadlock(cycle: list[str]) -> DeadlockError:
    text = f"it would wait forever: {' -> '.join(cycle)}"
    if len(cycle) == 1:
        text += "; an actor calls its own methods directly"
    elif any(step.startswith("start of ") for step in cycle):
        text += "; `init` can wait for nothing that is started after it"
    return DeadlockError(text, cycle)


def restarting(target: str) -> Restarting:
    return Restarting(f"`{target}` is being restarted")


def too_large(length: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"a message of {length:,} bytes, where {limit:,} is the limit: raise it with `max_message` in the project's "
        f"file or `--max-message`, or send what is large as a buffer (a numpy array, a `pickle.PickleBuffer`)"
    )


def mailbox_full(target: str, waiting: int) -> MailboxFull:
    return MailboxFull(f"the mailbox of `{target}` is full" + (f": {waiting} waiting" if waiting else ""))


def bad_call(text: str) -> BadCall:
    return BadCall(text)


def bad_result(text: str) -> BadResult:
    return BadResult(text)


def not_an_actor(is_helper: bool) -> NotAnActor:
    if is_helper:
        return NotAnActor("a process forked by an actor is no actor; send results to the actor and let it speak")
    hint = "run the application with `rebeam up`, or a function of a script with `rebeam.run`"
    return NotAnActor(f"this works inside an actor only; {hint}")


def no_last_word() -> CallTimeout:
    """Made by `_rebeam`: for a call whose time is over, and of which the supervisor does not tell how it stands."""
    return CallTimeout("there was no answer in time, and no word of what the callee does: the node is overloaded")


def is_undelivered(error: NoProc | ActorDied) -> bool:
    """Whether it says that nobody has begun to handle a call, rather than that its handler has raised this."""
    if isinstance(error.__cause__, RemoteTraceback):
        return False
    return isinstance(error, NoProc) or not error.begun


_OF_TEXT = (
    BadCall,
    NoProc,
    NoTable,
    SnapshotEnded,
    SpecError,
    StoreRestarted,
    StoreUnavailable,
    TableAccess,
    TableExists,
    TableFull,
)


def described(kind: str, message: str, traceback: str) -> RebeamError:
    """An error from outside the tree, of which there are words only: one of ours if it is made of its text."""
    own = next((cls for cls in _OF_TEXT if kind == f"rebeam.{cls.__name__}"), None)
    error = RemoteError(kind, message, traceback) if own is None else own(message)
    error.__cause__ = RemoteTraceback(traceback)
    return error


def remote(kind: str, message: str, traceback: str, pickled: bytes) -> BaseException:
    """The exception of another actor: of its own class if that can be had here, with its traceback as the cause."""
    error: BaseException | None = None
    notes: list[str] = []
    chain: list[str] = []
    if pickled:
        import pickle

        try:
            loaded, notes, chain = pickle.loads(pickled)
            if loaded is not None:
                loaded = pickle.loads(loaded)
        except Exception:
            loaded = None
        if isinstance(loaded, Exception):
            error = loaded
    if error is None:
        error = RemoteError(kind, message, traceback, notes, chain)
    elif notes:
        # A class that says how it is pickled may have forgotten of these.
        object.__setattr__(error, "__notes__", notes)
    # Some classes forbid to set attributes.
    object.__setattr__(error, "__cause__", RemoteTraceback(traceback))
    return error
