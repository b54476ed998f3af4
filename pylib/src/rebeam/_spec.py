"""How an application declares its tree. Checked where it is written down, so that errors point at the user's line."""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Never, TypeVar, Unpack, cast

from rebeam import _rebeam, _snapshot
from rebeam._actor import Actor
from rebeam._errors import SpecError
from rebeam._options import (
    AutoShutdown,
    Backoff,
    ChildOptions,
    OnCrash,
    OnFull,
    OnGiveup,
    Pauses,
    Reload,
    Restart,
    Shutdown,
    Strategy,
    WhileRestarting,
    is_number,
    one_of,
    refuse_unknown,
    size_in_bytes,
)
from rebeam._ref import Via

if TYPE_CHECKING:
    from collections.abc import Callable

    from rebeam._options import SupervisorOptions

A = TypeVar("A", bound=Actor)


def cpus() -> int:
    """How many CPUs this process may use, or as many as the container's quota has CPUs' worth of time, if that is less.

    The supervisor says the latter by `PYTHON_CPU_COUNT`, to which CPython itself listens from 3.13 on.
    """
    may = len(os.sched_getaffinity(0))
    said = os.environ.get("PYTHON_CPU_COUNT", "")
    return min(may, int(said)) if said.isdecimal() and int(said) > 0 else may


DEFAULT_SHUTDOWN = 5.0
"""Seconds an actor has for its end, as OTP's."""

DEFAULT_START_TIMEOUT = 60.0
"""Seconds `init` may take (MAP-09 of the conformance table)."""

DEFAULT_MAILBOX = (10_000, 64 * 1024 * 1024)
"""Messages and bytes that may wait for an actor (MAP-13)."""

DEFAULT_CONCURRENCY = 100
"""Messages that an actor with `async def` methods handles at once."""

MOST_CONCURRENCY = _rebeam.MOST_CONCURRENCY
"""The most that `concurrency` may be, which the status page of a process has room for."""

LONGEST_NAME = 1000
"""Characters that a name or an id may have."""


def _number(what: str, value: object, least: float, *, strict: bool = False) -> float:
    if not is_number(value) or value < least or (strict and value == least):  # type: ignore[operator]
        bound = f"above {least:g}" if strict else f"of {least:g} or more"
        raise SpecError(f"{what}={value!r}: it must be a number {bound}")
    return float(value)  # type: ignore[arg-type]


def checked_shutdown(value: object) -> Shutdown:
    if value == "infinity":
        return "infinity"
    if value == "brutal_kill":
        return "brutal_kill"
    if isinstance(value, str):
        near = difflib.get_close_matches(value, ("infinity", "brutal_kill"), 1)
        hint = f"did you mean {near[0]!r}?" if near else "it is a number of seconds, 'infinity' or 'brutal_kill'"
        raise SpecError(f"shutdown={value!r} is not known; {hint}")
    seconds = _number("shutdown", value, 0)
    return "infinity" if seconds == float("inf") else seconds


class Limits(NamedTuple):
    """What an actor may use, as `child` checked it; memory in KiB, times in seconds."""

    deadline: float | None
    deadlines: list[tuple[str, float]]
    memory_soft: int | None
    memory_hard: int | None
    max_messages: int | None
    max_age: float | None


class Mailbox(NamedTuple):
    """How much mail may wait and what becomes of it, as `child` checked it."""

    messages: int | None
    bytes: int | None
    on_full: OnFull
    on_crash: OnCrash
    while_restarting: WhileRestarting


class Process(NamedTuple):
    """How the process of an actor differs from others, as `child` checked it."""

    cpus: list[int]
    nice: int | None
    env: list[tuple[str, str]]
    directory: str | None
    uid: int | None
    gid: int | None
    is_port: bool = False


@dataclass(frozen=True, slots=True)
class ChildSpec(Generic[A]):
    """One actor of a tree, made by `child`."""

    id: str
    name: str | None
    via: Via | None
    class_name: str
    modules: list[str]
    reload: Reload
    has_checkpoint: bool
    start: tuple[type[A], tuple[Any, ...], dict[str, Any]]
    restart: Restart
    shutdown: Shutdown
    significant: bool
    start_timeout: float | None
    mailbox: Mailbox
    concurrency: int
    redelivered: list[tuple[str, int]]
    backoff: Pauses
    on_giveup: OnGiveup
    terminate_on_shutdown: bool
    limits: Limits
    process: Process
    is_supervisor: bool = field(default=False, init=False)


_CHILD_OPTIONS = tuple(ChildOptions.__annotations__)


def check_class_options(cls: type[Actor], options: dict[str, Any]) -> None:
    """Refuses options of a class statement that `child` does not know."""
    refuse_unknown(f"class `{cls.__qualname__}`", options, _CHILD_OPTIONS)


def child(actor: type[A], /, *args: Any, **options: Unpack[ChildOptions]) -> ChildSpec[A]:
    """An actor as a child of a supervisor. Options that are not given are those of its class, else the defaults.

    Args:
        actor: its class.
        args: positional arguments of `init`, the same at every start.
        options: see below.
        kwargs: keyword arguments of `init`.
        name: registers it; at most one actor has a name. What `via` gives registers it in a registry instead, which
            must stand before it in the tree. Default: none.
        id: unique among its siblings. Default: the name, else the class's name.
        restart: `permanent` (always started again), `transient` (after an abnormal end), `temporary` (never).
            Default: `permanent`.
        shutdown: seconds between the order to stop and the kill; `infinity`, or `brutal_kill` for no order at all.
            Default: 5.
        significant: whether the supervisor's `auto_shutdown` looks at it. Default: no.
        start_timeout: seconds `init` may take; None: no limit. Default: 60.
        max_messages_waiting: messages that may wait before senders have to; None: no limit. Default: 10,000.
        max_bytes_waiting: the same in bytes of content. Default: 64 MiB.
        on_full: what happens to more: `block` (the sender waits), `fail` (the sender gets `MailboxFull`),
            `drop_oldest` or `drop_new` (a dead letter; a call fails with `MailboxFull`). Default: `block`.
        mailbox: what a crash does to mail that waits: `keep` (for the next incarnation) or `drop` (dead letters; calls
            fail with `ActorDied`). Default: `keep`.
        while_restarting: what happens to calls meanwhile: `queue` (they wait, until their deadline) or `fail`.
            Default: `queue`.
        concurrency: how many messages are handled at once, if it has `async def` methods; at most 200.
            Default: 100; 1 without such methods.
        backoff: pauses before restarts. `auto`: none before the first, then longer ones, so that the restarts that the
            supervisor allows take half of its window, a second each at most (0.4 and 0.8 s with its defaults); begun
            anew when it has lived for a second. None: none at all, as OTP. Default: `auto`.
        on_giveup: what happens when it has used up the supervisor's restart limit: `stop` (the supervisor ends, as
            OTP) or `park` (it stays down until `rebeam restart`, its siblings live). Default: `stop`.
        terminate_on_shutdown: whether `terminate` runs when the supervisor stops it, also if it does not trap exits.
            False is OTP's rule. Default: True.
        callback_deadline: seconds that a method may run before the actor counts as hung and killed; None: forever.
            `rebeam.deadline` sets it for one method. Default: None.
        memory: what it may use, as `"800MB"`, `"1.5GiB"` or in bytes, without what it shares with others. It is
            killed there, and recycled between two messages from four fifths of it on; a pair sets both (soft, hard).
            Default: no limit.
        max_messages: messages after which it is recycled. Default: no limit.
        max_age: seconds after which it is recycled. Default: no limit.
        cpus: the CPUs it may run on. Default: all.
        nice: added to its niceness. Default: nothing.
        env: variables of its environment; it gets a fresh interpreter.
        threads: threads of numeric libraries (OpenMP, OpenBLAS, MKL, numexpr); it gets a fresh interpreter.
            Default: 1.
        directory: its working directory, relative to the project; it gets a fresh interpreter.
        uid, gid: whom it runs as; it gets a fresh interpreter.
        reload: what becomes of it when its code is new: `state` (the new code takes over its state and its mail; where
            that cannot be, it starts over), `restart` (it starts over, with its mail), or `never` (it stays with its
            code as long as it lives). Default: `state`; functions start over.

    Raises:
        SpecError: a value or an option that makes no sense.
    """
    given = cast("dict[str, Any]", options)
    refuse_unknown("`child`", given, _CHILD_OPTIONS)
    if not (isinstance(actor, type) and issubclass(actor, Actor)):
        what = "an instance; give the class" if isinstance(actor, Actor) else "not a subclass of `rebeam.Actor`"
        raise SpecError(f"{actor!r} is {what}")
    option = {**actor.__rebeam_options__, **given}.get
    kwargs = option("kwargs") or {}
    if not (isinstance(kwargs, dict) and all(isinstance(key, str) for key in kwargs)):
        raise SpecError(f"kwargs={kwargs!r}: it must be a dict of arguments of `{actor.__qualname__}.init` by name")
    called, id = option("name"), option("id")
    via = called if isinstance(called, Via) else None
    name: str | None = None if isinstance(called, Via) else called
    for what, text in (("name", name), ("id", id)):
        check_label(what, text)
    _check_arguments(actor, args, kwargs)
    return ChildSpec(
        id=id or name or (str(via).replace("/", "_") if via else actor.__name__),
        name=name,
        via=via,
        class_name=f"{actor.__module__}.{actor.__qualname__}",
        modules=_modules(actor, *args, *kwargs.values()),
        reload=one_of("reload", option("reload", "state"), Reload),
        has_checkpoint=actor.checkpoint is not Actor.checkpoint,
        start=(actor, args, kwargs),
        restart=one_of("restart", option("restart", "permanent"), Restart),
        shutdown=checked_shutdown(option("shutdown", DEFAULT_SHUTDOWN)),
        significant=_flag("significant", option("significant", False)),
        start_timeout=seconds_or_none("start_timeout", option("start_timeout", DEFAULT_START_TIMEOUT)),
        mailbox=Mailbox(
            _count("max_messages_waiting", option("max_messages_waiting", DEFAULT_MAILBOX[0]), 1),
            _count("max_bytes_waiting", option("max_bytes_waiting", DEFAULT_MAILBOX[1]), 1),
            one_of("on_full", option("on_full", "block"), OnFull),
            one_of("mailbox", option("mailbox", "keep"), OnCrash),
            one_of("while_restarting", option("while_restarting", "queue"), WhileRestarting),
        ),
        concurrency=_concurrency(actor, option("concurrency")),
        redelivered=_marked(actor, "__rebeam_redelivered__"),
        backoff=_backoff(option("backoff", "auto")),
        on_giveup=one_of("on_giveup", option("on_giveup", "stop"), OnGiveup),
        terminate_on_shutdown=_flag("terminate_on_shutdown", option("terminate_on_shutdown", True)),
        limits=_limits(actor, option),
        process=_process(option),
    )


_MOST_LOOKED_AT = 20
"""How many values of an argument are looked at for the modules that they come from."""


def _modules(*what: Any) -> list[str]:
    """The modules that classes, functions and objects come from: when the code of one is new, the actor's is."""
    found: dict[str, None] = {}
    queue = list(what)
    # It grows as it is gone through: by what containers hold.
    for value in queue:
        if isinstance(value, functools.partial):
            queue += value.func, *value.args, *value.keywords.values()
        elif isinstance(value, (list, tuple, set, frozenset, dict)) and len(queue) < _MOST_LOOKED_AT:
            values = value.values() if isinstance(value, dict) else value
            queue += itertools.islice(values, _MOST_LOOKED_AT)
        module = getattr(value, "__module__", None)
        if isinstance(module, str) and (module.partition(".")[0] not in _NOT_THEIRS or _snapshot.has_loaded(module)):
            found[module] = None
    return list(found)


_NOT_THEIRS = frozenset(("rebeam", *sys.stdlib_module_names)) - {"__main__"}
"""Packages whose code does not change."""


def check_label(what: str, text: object) -> None:
    if text is not None and (not isinstance(text, str) or not text or not text.isprintable() or text != text.strip()):
        raise SpecError(f"{what}={text!r}: it must be text without line breaks or surrounding spaces")
    if text is not None and len(text) > LONGEST_NAME:
        raise SpecError(f"{what}={text[:20]!r}…: it has {len(text):,} characters, where {LONGEST_NAME:,} are the limit")
    if what == "name" and isinstance(text, str) and any(mark in text for mark in "[]<>#"):
        raise SpecError(f"{what}={text!r}: brackets are for keys of registries and for pids, `#` for numbers")
    if text is not None and "/" in text:
        raise SpecError(f"{what}={text!r}: a slash is for paths in the tree")


def _flag(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{what}={value!r}: it must be True or False")
    return value


def seconds_or_none(what: str, value: object) -> float | None:
    return None if value is None else _number(what, value, 0, strict=True)


def _count(what: str, value: object, least: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(f"{what}={value!r}: it must be a whole number of {least} or more")
    return value


def _backoff(value: object) -> Pauses:
    if value is None:
        return None
    if value == "auto":
        return "auto"
    if not isinstance(value, Backoff):
        raise SpecError(f"backoff={value!r}: it must be a `rebeam.Backoff`, `auto` or None")
    _number("backoff.initial", value.initial, 0)
    _number("backoff.factor", value.factor, 1)
    _number("backoff.cap", value.cap, value.initial)
    if _number("backoff.jitter", value.jitter, 0) > 1:
        raise SpecError(f"backoff.jitter={value.jitter!r}: it is a share, from 0 to 1")
    return value


def _concurrency(actor: type[Actor], value: object) -> int:
    given = _count("concurrency", value, 1)
    is_async = overlaps(actor)
    if given is not None and given > MOST_CONCURRENCY:
        raise SpecError(f"concurrency={value!r}: it is {MOST_CONCURRENCY} at most")
    if given is not None and given > 1 and not is_async:
        raise SpecError(f"concurrency={value!r}: `{actor.__qualname__}` has no `async def` method")
    return given or (DEFAULT_CONCURRENCY if is_async else 1)


def overlaps(actor: type[Actor]) -> bool:
    """Whether an actor has handlers that can overlap: public methods or callbacks with `async def`."""
    known = vars(actor).get("__rebeam_overlaps__")
    if known is None:
        methods = (getattr(actor, name, None) for name in dir(actor) if not name.startswith("_"))
        is_async = (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method) for method in methods)
        known = any(is_async)
        # Looked at once, before actors are forked: it costs each of them nothing.
        actor.__rebeam_overlaps__ = known  # type: ignore[attr-defined]
    return bool(known)


def _marked(actor: type[Actor], mark: str) -> list[tuple[str, Any]]:
    """The methods that a decorator has marked, with what it says."""
    methods = ((name, getattr(getattr(actor, name, None), mark, None)) for name in dir(actor))
    return [(name, value) for name, value in methods if value is not None]


def _limits(actor: type[Actor], option: Callable[[str], Any]) -> Limits:
    deadlines = _marked(actor, "__rebeam_deadline__")
    memory = option("memory")
    soft: int | None
    hard: int | None
    if memory is None:
        soft, hard = None, None
    elif isinstance(memory, tuple) and len(memory) == 2:
        soft, hard = _kib(memory[0]), _kib(memory[1])
        if soft > hard:
            raise SpecError(f"memory={memory!r}: the soft limit is above the hard one")
    else:
        hard = _kib(memory)
        soft = hard * 4 // 5
    return Limits(
        deadline=seconds_or_none("callback_deadline", option("callback_deadline")),
        deadlines=deadlines,
        memory_soft=soft,
        memory_hard=hard,
        max_messages=_count("max_messages", option("max_messages"), 1),
        max_age=seconds_or_none("max_age", option("max_age")),
    )


def _kib(value: object) -> int:
    return size_in_bytes("memory", value) // 1024


_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def _process(option: Callable[[str], Any]) -> Process:
    given = option("env") or {}
    if not isinstance(given, Mapping):
        raise SpecError(f"env={given!r}: it must be a dict of names and values")
    env = dict(given)
    for key, value in env.items():
        if not (isinstance(key, str) and isinstance(value, str)) or not key or "=" in key or "\0" in key + value:
            raise SpecError(f"env={{{key!r}: {value!r}}}: names and values of variables are text")
    threads = _count("threads", option("threads"), 1)
    if threads is not None:
        env = {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), **env}
    directory = option("directory")
    if directory is not None and not isinstance(directory, str):
        raise SpecError(f"directory={directory!r}: it must be a path as text")
    cpus = option("cpus")
    if cpus is not None and (isinstance(cpus, (str, bytes)) or not isinstance(cpus, Iterable)):
        raise SpecError(f"cpus={cpus!r}: it must be a list of CPU numbers")
    nice = option("nice")
    if nice is not None and (not isinstance(nice, int) or not -20 <= nice <= 19):
        raise SpecError(f"nice={nice!r}: it must be a whole number from -20 to 19")
    return Process(
        cpus=[_count("cpus", cpu, 0) or 0 for cpu in cpus or ()],
        nice=nice,
        env=sorted(env.items()),
        directory=directory,
        uid=_count("uid", option("uid"), 0),
        gid=_count("gid", option("gid"), 0),
    )


def _check_arguments(actor: type[Actor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if actor.__init__ is not object.__init__:
        try:
            inspect.signature(actor.__init__).bind(None)
        except TypeError:
            hint = f"an actor is set up by `init`, in its own process; call it `{actor.__qualname__}.init`"
            raise SpecError(f"`{actor.__qualname__}.__init__` takes arguments: {hint}") from None
    if actor.init is Actor.init and (args or kwargs):
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise SpecError(f"`{actor.__qualname__}` has no `init` that takes {given}")
    try:
        inspect.signature(actor.init).bind(None, *args, **kwargs)
    except TypeError as error:
        raise SpecError(f"`{actor.__qualname__}.init`: {error}") from None


def unpicklable(spec: ChildSpec[Any], error: BaseException) -> SpecError:
    """The error for a child whose class or arguments cannot be sent to its process."""
    from rebeam._pickling import explain

    cls, args, kwargs = spec.start
    if _is_importable(cls):
        return SpecError(f"child `{spec.id}`: {explain((args, kwargs), f'{cls.__qualname__}.init', error)}")
    return SpecError(f"child `{spec.id}`: the class `{cls.__qualname__}` must stand at the top level of its module")


def _is_importable(cls: type) -> bool:
    import sys

    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


def as_child(one: object) -> ChildSpec[Any] | Supervisor:
    """What may stand in a list of children, or be started: a spec, a supervisor, or a class without arguments.

    Raises:
        SpecError: it is none of them.
    """
    if isinstance(one, (ChildSpec, Supervisor)):
        return one
    if isinstance(one, type) and issubclass(one, Actor):
        return child(one)
    if isinstance(one, _rebeam.Table):
        return TableChild(one)
    raise SpecError(f"{one!r} cannot be a child; use `child(Class, ...)` or a `Supervisor`")


class Supervisor:
    """A supervisor and its children, in start order. It runs in the Rust supervisor, not in a process of its own.

    Args:
        children: what `child` gives, further supervisors, or actor classes whose `init` needs no arguments.
        strategy: `one_for_one` (restart only who ended), `one_for_all` (all of them), `rest_for_one` (who ended and
            those after it).
        max_restarts: restarts allowed within `max_seconds`; one more, and the supervisor gives up. Default: 3.
        max_seconds: length of that sliding window. Default: 5.
        auto_shutdown: `never`, `any_significant`, `all_significant`: whether it ends with its significant children.
        name: registers it, for `rebeam.supervisor`. Default: none.
        id: unique among its siblings. Default: the name, else `supervisor`.
        restart, shutdown, significant, backoff, on_giveup: as for `child`, when it is one. Its shutdown time is
            `infinity` by default.

    Raises:
        SpecError: a value or an option that makes no sense.
    """

    __slots__ = (
        "auto_shutdown",
        "backoff",
        "children",
        "id",
        "max_restarts",
        "max_seconds",
        "name",
        "on_giveup",
        "restart",
        "shutdown",
        "significant",
        "strategy",
    )
    is_supervisor = True
    kind = "static"

    def __init__(
        self,
        children: Iterable[ChildSpec[Any] | Supervisor | type[Actor]],
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        auto_shutdown: AutoShutdown = "never",
        name: str | None = None,
        id: str | None = None,
        restart: Restart = "permanent",
        shutdown: Shutdown = "infinity",
        significant: bool = False,
        backoff: Pauses = "auto",
        on_giveup: OnGiveup = "stop",
        **unknown: Never,
    ) -> None:
        refuse_unknown(f"`{type(self).__name__}`", unknown, Supervisor.__slots__)
        for what, text in (("name", name), ("id", id)):
            check_label(what, text)
        self.strategy = one_of("strategy", strategy, Strategy)
        if not isinstance(max_restarts, int) or isinstance(max_restarts, bool):
            raise SpecError(f"max_restarts={max_restarts!r}: it must be a whole number")
        self.max_restarts = int(_number("max_restarts", max_restarts, 0))
        self.max_seconds = _number("max_seconds", max_seconds, 0, strict=True)
        self.auto_shutdown = one_of("auto_shutdown", auto_shutdown, AutoShutdown)
        self.name = name
        self.id = id or name or "supervisor"
        self.backoff = _backoff(backoff)
        self.on_giveup = one_of("on_giveup", on_giveup, OnGiveup)
        self.restart = one_of("restart", restart, Restart)
        self.shutdown = checked_shutdown(shutdown)
        self.significant = _flag("significant", significant)
        self.children = [as_child(one) for one in children]

    def __repr__(self) -> str:
        return f"<Supervisor {self.id!r}: {len(self.children)} children, {self.strategy}>"


class TableChild(Supervisor):
    """A table as a child of the tree: a supervisor without children, whose incarnation owns the rows."""

    __slots__ = ("table_access", "table_kind", "table_max_bytes", "table_on_full", "table_ttl")
    kind = "table"

    def __init__(self, table: _rebeam.Table) -> None:
        super().__init__([], id=table.name)
        self.table_kind: str = table._kind
        self.table_access: str = table._access or "public"
        self.table_ttl: float | None = table._ttl
        self.table_max_bytes: int | None = table._max_bytes
        self.table_on_full: str = table._on_full


class DynamicSupervisor(Supervisor):
    """A supervisor that starts empty, and whose children are started at run time, as Elixir's.

    Children have no order and no ids: they are known by pid or handle. Each is restarted by itself, with the very
    arguments it was started with; all are stopped at once.

    Args:
        max_children: how many there may be at once; None: no limit.
        options: as for `Supervisor`, without `strategy` and `auto_shutdown`.

    Raises:
        SpecError: a value or an option that makes no sense.
    """

    __slots__ = ("max_children",)
    kind = "dynamic"

    def __init__(
        self, *, max_children: int | None = None, name: str | None = None, **options: Unpack[SupervisorOptions]
    ) -> None:
        refuse_unknown("`DynamicSupervisor`", options, _DYNAMIC)
        super().__init__([], name=name, **cast("dict[str, Any]", options))
        self.max_children = _count("max_children", max_children, 1)


_STATIC_ONLY = ("children", "strategy", "auto_shutdown")
_DYNAMIC = ("max_children", *(option for option in Supervisor.__slots__ if option not in _STATIC_ONLY))


class PartitionSupervisor(Supervisor):
    """Copies of one child, among which `rebeam.partition` shares mail out by a key, as Elixir's.

    A copy that ends is replaced in its own place: a key always falls to the same one. Their ids are `0` to `n - 1`.

    Args:
        spec: the child, without a name of its own.
        partitions: how many copies. Default: `cpus()`.
        name: the name that `rebeam.partition` is given.
        options: as for `Supervisor`.

    Raises:
        SpecError: a value or an option that makes no sense.
    """

    __slots__ = ()
    kind = "partition"

    def __init__(
        self,
        spec: ChildSpec[Any] | type[Actor],
        *,
        name: str,
        partitions: int | None = None,
        **options: Unpack[SupervisorOptions],
    ) -> None:
        count = _count("partitions", partitions, 1) or cpus()
        one = as_child(spec)
        if isinstance(one, Supervisor) or one.name is not None:
            raise SpecError("the copies of a `PartitionSupervisor` are actors without a name")
        super().__init__(
            [replace(one, id=str(number)) for number in range(count)], name=name, **cast("dict[str, Any]", options)
        )
