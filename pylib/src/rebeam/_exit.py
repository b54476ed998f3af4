"""Why an actor ended, and what is known about its end. Plain data, made by the supervisor."""

from __future__ import annotations

from typing import Any, NamedTuple

from rebeam._ref import Pid


class ExitReason(NamedTuple):
    """The reason of an end.

    Attributes:
        kind: `normal`, `shutdown`, `exception`, `exit_code`, `signal`, `killed`, `heartbeat_timeout`, `memory_limit`,
            `limit_exceeded`, `bad_return`, `other`, `noproc`, `noconnection`, `bad_protocol`, `start_timeout`,
            `not_started` or `name_taken`.
        detail: the exception as `Type: message`, the exit code, the signal's name, or text of whoever chose it.
        traceback: the formatted traceback of an exception, else None.
    """

    kind: str
    detail: str = ""
    traceback: str | None = None

    def __str__(self) -> str:
        if self.kind in ("exception", "other"):
            return self.detail
        return f"{self.kind}({self.detail})" if self.detail else self.kind

    @property
    def is_clean(self) -> bool:
        """Whether a transient child with this end is left alone."""
        return self.kind in ("normal", "shutdown")


class InHand(NamedTuple):
    """A message that an actor had begun and not finished when it died.

    Attributes:
        method: which method.
        sender: the name of the sender, or its place in the tree; `outside` for the command line.
        age: seconds since its handler began.
        delivery: which delivery of it this was, from 1.
    """

    method: str
    sender: str
    age: float
    delivery: int


class Certificate(NamedTuple):
    """What is known about one end of one incarnation. Nothing in it is a guess.

    Attributes:
        actor: the actor's name, or its path in the tree.
        pid: the incarnation that ended.
        os_pid: its process.
        reason: why.
        in_hand: messages it had begun and not finished, oldest first.
        killer: who sent the signal that ended it: `rebeam: why`, `out of memory`, `unknown`; None if none did.
        stacks: the Python stacks of its threads at a fault or a hang, as `faulthandler` writes them; else empty.
        next: what follows: `restarts`, `stays_down`, `gives_up`, `parked`, or `undone` (it goes back to older code);
            None if that was not decided yet.
        restarts_after: the pause before it is started again, in seconds.
        last_output: the last lines of its stdout and stderr.
        age: how long it lived, in seconds.
        restarts: how often the actor had been started before.
        cpu: user and system time it used, in seconds.
        peak_kib: its largest resident size, in KiB.
        version: the version of the code that it ran (see `rebeam.version`).
        undone: if its death has undone a move to new code: the version that it goes back to, and how many messages
            the new code had handled, which have left nothing in its state; else None.
    """

    actor: str
    pid: Pid
    os_pid: int
    reason: ExitReason
    in_hand: tuple[InHand, ...]
    killer: str | None
    stacks: str
    next: str | None
    restarts_after: float
    last_output: tuple[str, ...]
    age: float
    restarts: int
    cpu: float
    peak_kib: int
    version: int
    undone: tuple[int, int] | None


def certificate(fields: dict[str, Any]) -> Certificate:
    """Makes a certificate of what `_rebeam` hands over."""
    fields = dict(fields)
    fields["pid"] = Pid(*fields["pid"])
    fields["reason"] = ExitReason(*fields["reason"])
    fields["in_hand"] = tuple(InHand(*message) for message in fields["in_hand"])
    fields["last_output"] = tuple(fields["last_output"])
    return Certificate(**fields)


def as_reason(reason: str | ExitReason) -> ExitReason:
    """A reason as others may give it: one of OTP's words, or any text of one's own."""
    if isinstance(reason, ExitReason):
        return reason
    return ExitReason(reason) if reason in ("normal", "shutdown") else ExitReason("other", reason)
