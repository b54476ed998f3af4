"""Foreign programs as children of the tree: how they are declared, and the handle on one.

Between a program and the supervisor stands a port, a small process without Python (`rebeam-port`); what is sent to it
is plain data. This module must not know how a port works.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import signal as _signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from rebeam import _pending, _rebeam, _runtime
from rebeam._actor import Actor
from rebeam._errors import RebeamError, SpecError
from rebeam._options import Backoff, CommonOptions, checked_timeout, is_number, one_of, refuse_unknown, size_in_bytes
from rebeam._ref import ActorRef, Target, To, address
from rebeam._spec import (
    DEFAULT_SHUTDOWN,
    DEFAULT_START_TIMEOUT,
    ChildSpec,
    Process,
    Supervisor,
    checked_shutdown,
    child,
    seconds_or_none,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rebeam._options import Shutdown
    from rebeam._pending import Pending
    from rebeam._ref import Timeout

Stdio = Literal["raw", "lines", "jsonrpc"]
Framing = Literal["lines", "headers"]
Cancel = Literal["mcp", "lsp", "never"]

DEFAULT_MAX_LINE = {"raw": 1 << 20, "lines": 1 << 20, "jsonrpc": 16 << 20}

_CONCURRENCY = 200
"""As many requests may be open at once."""


class Program(Actor):
    """A foreign program, as the class of an actor: what `program` gives is a `ChildSpec[Program]`."""

    def init(self, start: bytes) -> None:
        raise SpecError("a program needs a process of its own: there are none in `rebeam.testing`")


class ProgramOutput(NamedTuple):
    """What a program has written, to who has subscribed to it. For `handle_info`.

    Attributes:
        program: its actor's name, or its path in the tree.
        data: a line without its end (bytes that are no UTF-8 are shown as `\\xff`); of a program with `stdio="raw"`
            bytes, as they come.
    """

    program: str
    data: Any


class ProgramNotification(NamedTuple):
    """A notification of a program that speaks JSON-RPC, to who has subscribed to it. For `handle_info`.

    Attributes:
        program: its actor's name, or its path in the tree.
        method: what it is about.
        params: its parameters; None if it has none.
    """

    program: str
    method: str
    params: Any


class ProgramError(RebeamError):
    """A program has answered a request with an error of JSON-RPC.

    Attributes:
        code: its number.
        message: its text.
        data: what else it says.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return ProgramError, (self.code, self.message, self.data)


class ProgramRef(ActorRef[Program]):
    """A handle on a program: `rebeam.ProgramRef("name")`, or what `rebeam.start` gives. It can be sent to other actors,
    and follows restarts unless made of a `Pid`.

    All that is sent is plain data: what JSON has; with `stdio="raw"`, bytes.

    Args:
        to: its name, what `via` gives, or a `Pid`.
    """

    __slots__ = ()

    def __init__(self, to: To, target: Target = Target()) -> None:  # noqa: B008
        self._address = address(to)
        self._target = target

    def options(self, *, timeout: Timeout = ..., priority: Any = "normal") -> ProgramRef:
        """The same program, used differently: see `ActorRef.options`."""
        plain = super().options(timeout=timeout, priority=priority)
        return started(self._address, plain._target)

    def call(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, method: str, params: Any = None, *, timeout: Timeout = ...
    ) -> Any:
        """Sends a JSON-RPC request, and waits for the answer.

        Args:
            method: the program's.
            params: an object or an array; None: none.
            timeout: seconds; None: forever. Default: as for `ActorRef.call`. What takes longer is taken back, which the
                program is told as its protocol has it.

        Raises:
            ProgramError: it answers with an error.
            CallTimeout: it does not answer in time.
            ActorDied: it ends before it has answered, with the certificate of that.
            BadCall: it is no program for requests, or the parameters are not JSON.
        """
        return _rebeam.call(self._address, "request", (method, params), {}, self._with(timeout))

    async def acall(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, method: str, params: Any = None, *, timeout: Timeout = ...
    ) -> Any:
        """`call`, to be awaited. Cancelling the task that awaits it takes the request back."""
        return await self._awaited("request", (method, params), timeout)

    def request(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, method: str, params: Any = None, *, timeout: Timeout = ...
    ) -> Pending[Any]:
        """`call` without waiting: gives a `Pending`, whose `result()` waits, and which can be awaited."""
        return _pending.request(self._address, "request", ((method, params), {}), self._with(timeout), is_method=True)

    def notify(self, method: str, params: Any = None) -> None:
        """Sends a JSON-RPC notification. Nobody learns whether it was heard."""
        _rebeam.cast(self._address, "notify", (method, params), {}, self._with(...))

    async def anotify(self, method: str, params: Any = None) -> None:
        """`notify`, to be awaited: where the mailbox is full, only the task waits for room."""
        await self._sent("notify", (method, params))

    def cast(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, data: str | bytes, *, timeout: Timeout = ...
    ) -> None:
        """Writes a line, or, with `stdio="raw"`, bytes, to the program's standard input, and does not wait for that.

        A program that reads slowly fills its mailbox, and then its senders wait, as with any actor.
        """
        _rebeam.cast(self._address, "write", (data,), {}, self._with(timeout))

    async def acast(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self, data: str | bytes
    ) -> None:
        """`cast`, to be awaited: where the mailbox is full, only the task waits for room."""
        await self._sent("write", (data,))

    def write(self, data: str | bytes, *, timeout: Timeout = ...) -> None:
        """`cast`, which waits until the program's pipe has taken it.

        Raises:
            BadCall: the program does not read its input any more.
        """
        _rebeam.call(self._address, "write", (data,), {}, self._with(timeout))

    async def awrite(self, data: str | bytes, *, timeout: Timeout = ...) -> None:
        """`write`, to be awaited."""
        await self._awaited("write", (data,), timeout)

    def close_input(self) -> None:
        """Ends the program's standard input, once what was sent before has been written."""
        _rebeam.call(self._address, "close_input", (), {}, self._with(...))

    def subscribe(self) -> None:
        """Has what the program writes come to this actor: `ProgramOutput`, or, of JSON-RPC, `ProgramNotification`.

        It ends with either of the two; `output=` of `rebeam.program` says it once for all incarnations. While this
        actor's mailbox is full, nothing more is read of the program.
        """
        _rebeam.call(self._address, "subscribe", (tuple(_runtime.me().pid),), {}, self._with(...))

    def unsubscribe(self) -> None:
        """Ends what `subscribe` has begun."""
        _rebeam.call(self._address, "unsubscribe", (tuple(_runtime.me().pid),), {}, self._with(...))

    def server_info(self) -> Any:
        """What the program has answered to `initialize`, of its current start; see `rebeam.program`."""
        return _rebeam.call(self._address, "server_info", (), {}, self._with(...))

    def os_pid(self) -> int | None:
        """The process id of the program; None while it is not there, see `idle=` of `rebeam.program`."""
        found: int | None = _rebeam.call(self._address, "os_pid", (), {}, self._with(...))
        return found

    def _with(self, timeout: Timeout) -> Target:
        given = self._target.timeout if timeout is ... else checked_timeout(timeout)
        return Target(given, self._target.is_high, is_plain=True)

    async def _awaited(self, method: str, args: tuple[Any, ...], timeout: Timeout) -> Any:
        return await _pending.acall(self._address, method, (args, {}), self._with(timeout), is_method=True)

    async def _sent(self, method: str, args: tuple[Any, ...]) -> None:
        def send(target: Target) -> None:
            _rebeam.cast(self._address, method, args, {}, target, has_room=True)

        await _pending.when_room(self._address, method, self._with(...), send)

    def __reduce__(self) -> tuple[Any, ...]:
        return started, (self._address, self._target)

    def __repr__(self) -> str:
        return f"<ProgramRef {f'#{self._address}' if isinstance(self._address, int) else self._address}>"


def started(address: Any, target: Target = Target()) -> ProgramRef:  # noqa: B008
    """A handle by an address as `_rebeam` has it."""
    made = ProgramRef.__new__(ProgramRef)
    made._address = address
    made._target = target
    return made


class ProgramOptions(CommonOptions, total=False):
    """The options of `program` that are those of `child`."""

    name: str | None
    memory: str | int | None


_OWN = (
    "stdio",
    "framing",
    "cancel",
    "output",
    "handler",
    "ready",
    "initialize",
    "stop_signal",
    "idle",
    "max_line",
    "cwd",
)
_OPTIONS = (*_OWN, *ProgramOptions.__annotations__)


def program(
    argv: Sequence[str],
    /,
    *,
    stdio: Stdio | None = None,
    framing: Framing | None = None,
    cancel: Cancel | None = None,
    output: To | None = None,
    handler: To | None = None,
    ready: str | None = None,
    initialize: Mapping[str, Any] | None = None,
    stop_signal: str | int = "SIGTERM",
    idle: float | None = None,
    max_line: int | str | None = None,
    cwd: str | None = None,
    **options: Unpack[ProgramOptions],
) -> ChildSpec[Program]:
    """A foreign program as a child of a supervisor. The actor ends with the program, and the program, with all that it
    has started, with the actor.

    Args:
        argv: the program and its arguments. It is looked up in `PATH`, and no shell has a part in it.
        stdio: what its standard input and output are: `raw` (bytes), `lines` (lines of text), `jsonrpc` (JSON-RPC 2.0).
            Default: it reads nothing, and what it writes is logged, as its standard error always is.
        framing: of `jsonrpc`: each message is a line (`lines`, as the Model Context Protocol has it), or has a header
            with its `Content-Length` (`headers`, as the Language Server Protocol has it). Default: `lines`.
        cancel: of `jsonrpc`: how a request is taken back: `mcp` (`notifications/cancelled`), `lsp` (`$/cancelRequest`),
            `never`. Default: that of the framing.
        output: who gets `ProgramOutput` and `ProgramNotification`, beside those who subscribe. Default: the log.
        handler: of `jsonrpc`: the actor that answers the program's own requests by `handle_request(method, params)`,
            whose result is the answer, and hears its notifications by `handle_notification(method, params)`, if it has
            these methods. Default: requests are answered with "method not found", `ping` with `{}`.
        ready: when it is ready, and its actor up: `line:PATTERN` (a line of either output has that regular expression
            in it), `tcp:HOST:PORT`, `unix:PATH` (a connection is accepted), `file:PATH` (is there), or an address
            `http://HOST[:PORT][/PATH]` (a GET is answered with a status from 200 to 399). `start_timeout` is its
            limit. Default: at once.
        initialize: of `jsonrpc`: the parameters of the request `initialize`, with which both of these protocols begin.
            It is sent each time the program starts; the program is ready when it has answered, and has been sent the
            notification that follows (`notifications/initialized`, or `initialized` with `framing="headers"`).
            Default: none is sent.
        stop_signal: what asks it to end. Default: `SIGTERM`. After `shutdown` seconds it is killed.
        idle: seconds without any message to it after which it is stopped; the next message starts it again, and waits
            until it is ready. Default: never.
        max_line: how long a line, or a message of JSON-RPC, may be, in bytes or as `"1MiB"`. A longer line is left out;
            a longer message ends the program. Default: 1 MiB, of messages 16 MiB.
        cwd: its working directory, relative to the project. Default: the project's.
        options: as for `child`: `name`, `id` (default: the name, else the program's), `restart`, `shutdown`,
            `significant`, `start_timeout`, `max_messages_waiting`, `max_bytes_waiting`, `on_full`, `mailbox`,
            `while_restarting`, `backoff`, `on_giveup`, `memory` (of the program and all that it has started), `cpus`,
            `nice`, `env` (added to the node's), `uid`, `gid`.

    Raises:
        SpecError: an option that makes no sense.
    """
    refuse_unknown("`program`", options, _OPTIONS)
    words = _words(argv)
    if stdio is not None:
        one_of("stdio", stdio, Stdio)
    for what, value in (("framing", framing), ("cancel", cancel), ("handler", handler), ("initialize", initialize)):
        if value is not None and stdio != "jsonrpc":
            raise SpecError(f'{what}={value!r} is for `stdio="jsonrpc"`')
    if output is not None and stdio is None:
        raise SpecError(f'output={output!r}: say what its output is: `stdio="lines"`, `"raw"` or `"jsonrpc"`')
    framed: str = one_of("framing", framing or "lines", Framing)
    cancelled: str = one_of("cancel", cancel or {"lines": "mcp", "headers": "lsp"}[framed], Cancel)
    if idle is not None and (not is_number(idle) or not 0 < idle < 1e9):
        raise SpecError(f"idle={idle!r}: it is a number of seconds, more than 0")
    if idle is not None and stdio is None:
        raise SpecError(f"idle={idle!r} is for a program that is sent messages: say what its input is by `stdio`")
    if cwd is not None and not isinstance(cwd, str):
        raise SpecError(f"cwd={cwd!r}: it must be a path as text")
    if isinstance(options.get("memory"), tuple):
        raise SpecError(f"memory={options.get('memory')!r}: a program has one limit, at which it is killed")
    try:
        start = _rebeam.program_start(
            argv=words,
            stdio=stdio,
            framing=framed,
            cancel=cancelled,
            output=None if output is None else address(output),
            handler=None if handler is None else address(handler),
            ready=_ready(ready),
            start_limit=seconds_or_none("start_timeout", options.get("start_timeout", DEFAULT_START_TIMEOUT)),
            initialize=None if initialize is None else _as_json("initialize", initialize),
            stop_signal=_number_of(stop_signal),
            stop_limit=_limit(checked_shutdown(options.get("shutdown", DEFAULT_SHUTDOWN))),
            idle=idle,
            max_line=size_in_bytes("max_line", max_line)
            if max_line is not None
            else DEFAULT_MAX_LINE[stdio or "lines"],
        )
    except ValueError as error:
        raise SpecError(str(error)) from None
    called = os.path.basename(words[0])
    defaults: dict[str, Any] = {"id": options.get("name") or called, "reload": "never", "directory": cwd}
    given: dict[str, Any] = {**defaults, **cast("dict[str, Any]", options)}
    spec = child(Program, start, **given)
    memory = spec.limits.memory_hard
    return _replaced(spec, words, memory)


def declared(name: str, options: object) -> Supervisor:
    """A program as the project's file declares it.

    It has a supervisor of its own, so that its restarts count for nobody else, and is parked when it has used them up.

    Args:
        name: of its table, and of the actor.
        options: `command`, which is `program`'s `argv`, and its other arguments.

    Raises:
        SpecError: it makes no sense.
    """
    if not isinstance(options, dict) or "command" not in options:
        near = difflib.get_close_matches("command", options, 1) if isinstance(options, dict) else []
        hint = f"did you mean that by `{near[0]}`?" if near else f'in its table, write `command = ["{name}"]`'
        raise SpecError(f"the program `{name}` of the project's file has no `command`; {hint}")
    rest: dict[str, Any] = {"name": name, "on_giveup": "park", **options}
    try:
        if isinstance(rest.get("backoff"), dict):
            rest["backoff"] = Backoff(**rest["backoff"])
        return Supervisor([program(rest.pop("command"), **rest)], id=name)
    except TypeError as error:
        raise SpecError(f"the program `{name}` of the project's file: backoff: {error}") from None
    except SpecError as error:
        raise SpecError(f"the program `{name}` of the project's file: {error}") from None


def _replaced(spec: ChildSpec[Program], words: list[str], memory: int | None) -> ChildSpec[Program]:
    from dataclasses import replace

    return replace(
        spec,
        class_name=" ".join(words)[:200],
        modules=[],
        concurrency=_CONCURRENCY,
        limits=spec.limits._replace(memory_soft=None, memory_hard=memory),
        process=Process(*spec.process[:-1], is_port=True),
    )


def _words(argv: object) -> list[str]:
    if isinstance(argv, (str, bytes)) or not isinstance(argv, Sequence):
        hint = f"; write {argv.split()!r}, or `['sh', '-c', {argv!r}]` for a shell" if isinstance(argv, str) else ""
        raise SpecError(f"{argv!r} is no list of words: the program and its arguments{hint}")
    words = list(argv)
    for word in words:
        if not isinstance(word, str) or "\0" in word:
            raise SpecError(f"an argument of a program is text without NUL: not {word!r}")
    if not words or not words[0]:
        raise SpecError("there is no program to start: the first of its words names it")
    return words


def _as_json(what: str, value: object) -> str:
    if not isinstance(value, Mapping):
        raise SpecError(f"{what}={value!r}: it must be a dictionary")
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{what}={value!r} is not JSON: {error}") from None


_READY = re.compile(r"(?P<kind>line|tcp|unix|file|http)(?:://|:)(?P<rest>.+)", re.DOTALL)


def _ready(ready: object) -> tuple[str, str, int, str] | None:
    """Kind, host, port and text of what makes it ready."""
    if ready is None:
        return None
    found = _READY.fullmatch(ready) if isinstance(ready, str) else None
    if found is None:
        known = "`line:PATTERN`, `tcp:HOST:PORT`, `unix:PATH`, `file:PATH`, `http://HOST:PORT/PATH`"
        raise SpecError(f"ready={ready!r} is not known; it is one of {known}")
    kind, rest = found["kind"], found["rest"]
    if kind in ("tcp", "http"):
        place, slash, path = rest.partition("/") if kind == "http" else (rest, "", "")
        host, colon, port = place.rpartition(":") if ":" in place and not place.endswith("]") else (place, "", "")
        if not host or (colon and not port.isdecimal()) or (kind == "tcp" and not colon) or int(port or 80) > 65535:
            raise SpecError(f"ready={ready!r}: it has to name a host and a port")
        return kind, host.strip("[]"), int(port or 80), slash + path or "/"
    return kind, "", 0, rest


def _limit(shutdown: Shutdown) -> float | None:
    """How long a program is given to stop, in seconds."""
    return {"infinity": None, "brutal_kill": 0.0}[shutdown] if isinstance(shutdown, str) else shutdown


def _number_of(stop_signal: object) -> int:
    if isinstance(stop_signal, str):
        name = stop_signal if stop_signal.startswith("SIG") else f"SIG{stop_signal}"
        found = getattr(_signal, name, None)
        if isinstance(found, _signal.Signals):
            return int(found)
    elif isinstance(stop_signal, int) and not isinstance(stop_signal, bool) and 0 < stop_signal <= 64:
        return int(stop_signal)
    raise SpecError(f'stop_signal={stop_signal!r} is no signal; write `"SIGTERM"`, for instance')


def wrote(label: str, data: Any) -> ProgramOutput:
    """The message that a port sends."""
    return ProgramOutput(label, data)


def notified(label: str, method: str, params: Any) -> ProgramNotification:
    """The message that a port sends."""
    return ProgramNotification(label, method, params)


def program_error(code: int, message: str, data: Any) -> ProgramError:
    """The error that a port sends."""
    return ProgramError(code, message, data)
