"""What options may be: their words and types, for whoever writes a tree, for type checkers and editors.

The words stand here once: a type checker reads them, and a wrong one is refused by them at run time, with the nearest.
It must not know what an option does.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict, get_args

from rebeam._errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rebeam._ref import Via

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
AutoShutdown: TypeAlias = Literal["never", "any_significant", "all_significant"]
Shutdown: TypeAlias = float | Literal["infinity", "brutal_kill"]
"""Seconds, or a word."""
OnGiveup: TypeAlias = Literal["stop", "park"]
OnFull: TypeAlias = Literal["block", "fail", "drop_oldest", "drop_new"]
OnCrash: TypeAlias = Literal["keep", "drop"]
WhileRestarting: TypeAlias = Literal["queue", "fail"]
Reload: TypeAlias = Literal["state", "restart", "never"]
Priority: TypeAlias = Literal["normal", "high"]
Keys: TypeAlias = Literal["unique", "duplicate"]
Pick: TypeAlias = Literal["random", "round_robin", "least_waiting"]
TableKind: TypeAlias = Literal["set", "ordered_set", "bag", "duplicate_bag"]
OnTableFull: TypeAlias = Literal["error", "oldest"]
Access: TypeAlias = Literal["protected", "public", "private"]


class Backoff(NamedTuple):
    """Pauses before restarts: `initial`, then `factor` times the last one, up to `cap`.

    It starts over once the child has lived for `cap`, and at least a second.

    Attributes:
        initial: the first pause, in seconds.
        factor: by which it grows.
        cap: the longest pause, in seconds.
        jitter: the share of a pause, from 0 to 1, that chance may take away.
    """

    initial: float = 0.1
    factor: float = 2.0
    cap: float = 30.0
    jitter: float = 0.1


Pauses: TypeAlias = Backoff | Literal["auto"] | None


class CommonOptions(TypedDict, total=False):
    """The options that `child` and `program` share."""

    id: str | None
    restart: Restart
    shutdown: Shutdown
    significant: bool
    start_timeout: float | None
    max_messages_waiting: int | None
    max_bytes_waiting: int | None
    on_full: OnFull
    mailbox: OnCrash
    while_restarting: WhileRestarting
    backoff: Pauses
    on_giveup: OnGiveup
    cpus: Iterable[int] | None
    nice: int | None
    env: Mapping[str, str] | None
    uid: int | None
    gid: int | None


class ChildOptions(CommonOptions, total=False):
    """The options of `child`, and of an actor's class (`class Worker(Actor, restart="transient")`)."""

    kwargs: dict[str, Any]
    name: str | Via | None
    concurrency: int | None
    terminate_on_shutdown: bool
    callback_deadline: float | None
    memory: str | int | tuple[str | int, str | int] | None
    max_messages: int | None
    max_age: float | None
    threads: int | None
    directory: str | None
    reload: Reload


if TYPE_CHECKING:

    class SupervisorOptions(TypedDict, total=False):
        """The options of a supervisor whose children are all alike."""

        max_restarts: int
        max_seconds: float
        id: str | None
        restart: Restart
        shutdown: Shutdown
        significant: bool
        backoff: Pauses
        on_giveup: OnGiveup


def one_of(what: str, value: object, words: Any) -> Any:
    """A value that must be one of the words of a `Literal`.

    Raises:
        SpecError: it is not.
    """
    allowed: tuple[str, ...] = get_args(words)
    if isinstance(value, str) and value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; it is one of {', '.join(map(repr, allowed))}"
    raise SpecError(f"{what}={value!r} is not known{hint}")


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(what: str, value: object) -> int:
    """A size of 1 KiB or more.

    Raises:
        SpecError: it is none.
    """
    size = float("nan")
    if isinstance(value, int) and not isinstance(value, bool):
        size = float(value)
    elif isinstance(value, str):
        number = value.rstrip("BbKkMmGgIi ")
        unit = value[len(number) :].strip().upper() or "B"
        try:
            size = float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            pass
    if not 1024 <= size < 2**63:
        raise SpecError(
            f"{what}={value!r}: it must be a size of 1 KiB or more, such as '800MB' or '1.5GiB', or a number of bytes"
        )
    return int(size)


def is_number(value: object) -> bool:
    """Whether a value is a number that can be compared: no bool, no NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def checked_timeout(value: Any) -> Any:
    """A number of seconds, None or the default.

    Raises:
        SpecError: it is none of them.
    """
    if not (is_number(value) or value is None or value is ...):
        raise SpecError(f"timeout={value!r}: it must be a number of seconds, or None")
    return value


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses options that there are not, with the nearest that there is.

    Raises:
        SpecError: there is one.
    """
    for key in given:
        if key in known:
            continue
        near = difflib.get_close_matches(key, list(known), 1)
        hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(f'`{k}`' for k in known)}"
        raise SpecError(f"{what} has no option `{key}`{hint}")
