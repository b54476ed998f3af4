"""Why an actor ended, and what is known about its end. Plain data, made by the supervisor."""

from __future__ import annotations

from typing import Any, NamedTuple

from rebeam._ref import Pid


class ExitReason(NamedTuple):
    """The reason of an end.

    Attributes:
        kind: `normal`, `shutdown`, `exception`, `exit_code`, `signal`, `killed`, `heartbeat_timeout`, `other`,
            `noproc`, `noconnection`, `bad_protocol`, `start_timeout` or `not_started`.
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
        last_output: the last lines of its stdout and stderr.
        age: how long it lived, in seconds.
        restarts: how often the actor had been started before.
        cpu: user and system time it used, in seconds.
        peak_kib: its largest resident size, in KiB.
    """

    actor: str
    pid: Pid
    os_pid: int
    reason: ExitReason
    in_hand: tuple[InHand, ...]
    last_output: tuple[str, ...]
    age: float
    restarts: int
    cpu: float
    peak_kib: int


def certificate(fields: dict[str, Any]) -> Certificate:
    """Makes a certificate of what `_rebeam` hands over."""
    fields = dict(fields)
    fields["pid"] = Pid(*fields["pid"])
    fields["reason"] = ExitReason(*fields["reason"])
    fields["in_hand"] = tuple(InHand(*message) for message in fields["in_hand"])
    fields["last_output"] = tuple(fields["last_output"])
    return Certificate(**fields)
