"""Functions, modules and scripts as actors. They take their mail themselves, with `rebeam.receive`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, Unpack, overload

from rebeam import _pending, _rebeam, _spec
from rebeam._actor import Actor
from rebeam._errors import ActorDied, ChildError, NoProc, SpecError, Stop, is_undelivered
from rebeam._ref import ActorRef, Target, Timeout, Via

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rebeam._options import ChildOptions, Priority
    from rebeam._programs import Program, ProgramRef

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")


class FunctionActor(Actor):
    """What runs a function instead of handling messages. Its methods cannot be called.

    A stop that its supervisor orders is an exit signal: it raises `ActorExit` wherever the function is, as a process of
    Erlang that does not trap exits would end. `rebeam.stop` and, with `trap_exits`, every stop raise `Stop` in the next
    `receive`.
    """

    def init(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._work = (function, args, kwargs)

    def _run(self) -> None:
        _rebeam.take_own_mail()
        if not _rebeam.is_virtual():
            from rebeam import _boot

            _boot.expect_sigterm()
        function, args, kwargs = self._work
        result = function(*args, **kwargs)
        import inspect

        if inspect.iscoroutine(result):
            from rebeam import _loop

            _loop.run(result)


def function(function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> _spec.ChildSpec[FunctionActor]:
    """A function as a child of a supervisor. The actor ends when it returns; by default it is `transient`.

    Options of `child` are added with `rebeam.child_options(spec, …)`.
    """
    if not callable(function):
        raise SpecError(f"{function!r} is no function")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", None) or "?"
    return _named(function, args, kwargs, name.rpartition(".")[2] or name, f"{module}.{name}", {})


def module(name: str, /, *argv: str, **options: Unpack[ChildOptions]) -> _spec.ChildSpec[FunctionActor]:
    """A module as a child of a supervisor: it is run as `python -m NAME ARGV…` would, and the actor ends with it.

    Args:
        name: the module's name.
        argv: its arguments, as `sys.argv[1:]` has them.
        options: as for `child`.

    Raises:
        SpecError: an argument that is no text; an option that makes no sense.
    """
    spec = _named(_run_module, (name, *_texts(name, argv)), {}, name.rpartition(".")[2], name, options)
    return replace(spec, modules=[name])


def script(path: str, /, *argv: str, **options: Unpack[ChildOptions]) -> _spec.ChildSpec[FunctionActor]:
    """A file as a child of a supervisor: it is run as `python FILE ARGV…` would, and the actor ends with it.

    Args:
        path: the file, relative to the project's directory. Its classes can be sent to others, who import the file for
            them: what must not run there stands under `if __name__ == "__main__":`.
        argv: its arguments, as `sys.argv[1:]` has them.
        options: as for `child`.

    Raises:
        SpecError: an argument that is no text; an option that makes no sense.
    """
    from rebeam import _snapshot

    _snapshot.include(path)
    name = os.path.splitext(os.path.basename(path))[0]
    spec = _named(_run_script, (path, *_texts(path, argv)), {}, name, path, options)
    return replace(spec, modules=[os.path.abspath(path)])


def _texts(program: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    for argument in argv:
        if not isinstance(argument, str):
            raise SpecError(f"`{program}`: the argument {argument!r} is no text; write `{str(argument)!r}`")
    return argv


def child_options(
    spec: _spec.ChildSpec[FunctionActor], /, **options: Unpack[ChildOptions]
) -> _spec.ChildSpec[FunctionActor]:
    """The same function as a child with options of `child`, such as `name` and `restart`."""
    _, args, _ = spec.start
    function, arguments, kwargs = args
    return replace(_named(function, arguments, kwargs, spec.id, spec.class_name, options), modules=spec.modules)


def _named(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    id: str,
    label: str,
    options: Mapping[str, Any],
) -> _spec.ChildSpec[FunctionActor]:
    defaults = {"restart": "transient", "terminate_on_shutdown": False, "id": options.get("name") or id}
    spec = _spec.child(FunctionActor, function, args, kwargs, **{**defaults, **options})
    return replace(spec, class_name=label)


@overload
def start(  # pyright: ignore[reportOverlappingOverload]
    what: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[A]: ...
@overload
def start(  # pyright: ignore[reportOverlappingOverload]
    what: _spec.ChildSpec[Program], /, *, supervisor: str | None = None
) -> ProgramRef: ...
@overload
def start(what: _spec.ChildSpec[A], /, *, supervisor: str | None = None) -> ActorRef[A]: ...
@overload
def start(
    what: Callable[..., Any], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[FunctionActor]: ...
def start(what: Any, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]) -> ActorRef[Any]:
    """Starts an actor at run time; returns when it runs, is registered, and is found by every other.

    It belongs to nobody, and stays until it ends or is stopped. Like any child it is `permanent` by default (a function
    `transient`).

    Args:
        what: an actor's class; a function; or what `child`, `function`, `script` and the like give.
        args: arguments of the class's `init`, or of the function.
        supervisor: the name of the supervisor that it is to be a child of. Default: the node's own, under which
            children start beside each other and each has a restart limit of its own.
        options: as for `child`, `name` among them.

    Raises:
        ChildError: `already_started`, with the `pid` of who has the name; `start_failed`, with the reason, if its
            `init` fails.
        SpecError: an option that makes no sense, or something that cannot be an actor.
    """
    return _pending.follow(starting(_spec_of(what, args, options), supervisor), "start")


@overload
async def astart(
    what: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[A]: ...  # pyright: ignore[reportOverlappingOverload]
@overload
async def astart(  # pyright: ignore[reportOverlappingOverload]
    what: _spec.ChildSpec[Program], /, *, supervisor: str | None = None
) -> ProgramRef: ...
@overload
async def astart(what: _spec.ChildSpec[A], /, *, supervisor: str | None = None) -> ActorRef[A]: ...
@overload
async def astart(
    what: Callable[..., Any], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[FunctionActor]: ...
async def astart(
    what: Any, /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[Any]:
    """`start`, to be awaited. Cancelled, it starts the actor none the less."""
    return await _pending.afollow(starting(_spec_of(what, args, options), supervisor))


def starting(spec: _spec.ChildSpec[Any], supervisor: str | None) -> _pending.Steps[ActorRef[Any]]:
    if supervisor is None:
        started = yield _rebeam.spawn(spec, is_owned=False, is_linked=False)
    else:
        started = yield _rebeam.supervisor(supervisor, "start_child", spec)
    return _handle(spec, spec.name or started["number"])


def _handle(spec: _spec.ChildSpec[Any], to: Any) -> ActorRef[Any]:
    if spec.process.is_port:
        from rebeam._programs import started

        return started(to)
    return ActorRef(to)


def get_or_start(
    key: str | Via, actor: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[A]:
    """The actor with this name or key, which is started if there is none. Of many callers at once one starts it, and
    all get it, once its `init` has returned.

    The handle starts it again, if there is none when it is used. An actor per key may so be there only
    while it is used, and no call is lost: where `handle_info` raises `Stop` on `TIMEOUT`, that is refused while mail
    waits.

    Args:
        key: a name, or what `via` gives.
        actor: its class.
        args: arguments of its `init`, if it is started.
        supervisor, options: as for `start`.

    Raises:
        ChildError: `start_failed`, with the reason, if its `init` fails; `already_present` if it is the name of an
            actor that is down.
        SpecError: an option that makes no sense.
    """
    starter = _starter(key, actor, args, supervisor, options)
    _pending.follow(starter.steps(), "get_or_start")
    return KeyedRef(starter)


async def aget_or_start(
    key: str | Via, actor: type[A], /, *args: Any, supervisor: str | None = None, **options: Unpack[ChildOptions]
) -> ActorRef[A]:
    """`get_or_start`, to be awaited."""
    starter = _starter(key, actor, args, supervisor, options)
    await _pending.afollow(starter.steps())
    return KeyedRef(starter)


def _starter(
    key: str | Via, actor: type[A], args: tuple[Any, ...], supervisor: str | None, options: Mapping[str, Any]
) -> _Starter:
    if not isinstance(key, (str, Via)):
        raise TypeError(f"{key!r} is no name, and not what `via` gives")
    return _Starter(key, _spec_of(actor, args, {**options, "name": key}), supervisor)


def _see_to(key: str | Via, spec: _spec.ChildSpec[Any], supervisor: str | None) -> _pending.Steps[None]:
    """Starts an actor unless there is one with its key."""
    if _rebeam.find(key) is not None and (yield _rebeam.wait_for(key, 0.0)) is not None:
        return
    is_there = False
    while not is_there:
        try:
            yield from starting(spec, supervisor)
            is_there = True
        except ChildError as error:
            is_there = yield from _is_started_by_another(key, error)


def _is_started_by_another(key: str | Via, error: ChildError) -> _pending.Steps[bool]:
    """Waits for whoever is in the way of a start; False if it is our turn again, and the error if that is no use."""
    if error.pid is not None:
        # Its `init` may be under way, and may fail.
        is_up = (yield _rebeam.wait_for(error.pid, None)) is not None
        if is_up and _rebeam.find(key) is None:
            if _rebeam.resolve(error.pid) is not None:
                # It is another child with the same id.
                raise error
            # It has ended meanwhile.
            return False
        return is_up
    is_taken = error.reason is not None and error.reason.kind == "name_taken"
    if error.kind == "restarting" or is_taken:
        return (yield _rebeam.wait_for(key, 1.0)) is not None
    raise error


class KeyedRef(ActorRef[A]):
    """What `get_or_start` gives: a handle that starts its actor again if there is none when it is used.

    It carries the arguments of `init` wherever it is sent. `request`, `arequest` and `stream` start the actor, too, if
    there is none; if it ends just then, they fail as with any handle.
    """

    __slots__ = ("_via",)

    def __init__(self, starter: _Starter, target: Target = Target()) -> None:  # noqa: B008
        super().__init__(starter.key, target)
        self._via = starter

    def options(self, *, timeout: Timeout = ..., priority: Priority = "normal") -> ActorRef[A]:
        target = super().options(timeout=timeout, priority=priority)._target
        return KeyedRef(self._via, target)

    @property
    def request(self) -> Any:
        self._via.see_to("request")
        return super().request

    @property
    def stream(self) -> Any:
        self._via.see_to("stream")
        return super().stream

    async def _arequest(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        await self._via.asee_to()
        return await super()._arequest(method, args, kwargs)

    async def _acall(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await self._via.acall(method, (args, kwargs), self._target, is_method=True)

    async def _acast(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        await self._via.asee_to()
        await super()._acast(method, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyedRef, (self._via, self._target)


class _Tries:
    """How often a call may find nobody, and what is left of its time."""

    def __init__(self, target: Target) -> None:
        self._is_high = target.is_high
        seconds = target.timeout
        if seconds is ...:
            message = _rebeam.current()
            left = None if message is None else message.time_left
            seconds = 5.0 if left is None else left
        self._until = None if seconds is None else _rebeam.clock() + seconds
        self._left = MOST_TRIES

    @property
    def target(self) -> Target:
        """How the call is made now."""
        left = None if self._until is None else max(0.0, self._until - _rebeam.clock())
        return Target(left, self._is_high)

    def failed(self, error: ActorDied | NoProc) -> None:
        """Raises the error if the call may have been begun, if its time is over, or if it was tried often enough."""
        self._left -= 1
        is_over = self._until is not None and _rebeam.clock() >= self._until
        if not is_undelivered(error) or is_over or self._left == 0:
            raise error


MOST_TRIES = 10
"""Lives of an actor that may end before they take a call."""


class _Starter(NamedTuple):
    """How such a handle sends, and what it starts."""

    key: str | Via
    spec: _spec.ChildSpec[Any]
    supervisor: str | None

    def steps(self) -> _pending.Steps[None]:
        """Sees to it that the actor is there."""
        return _see_to(self.key, self.spec, self.supervisor)

    def see_to(self, form: str) -> None:
        if _rebeam.find(self.key) is None:
            _pending.follow(self.steps(), form)

    async def asee_to(self) -> None:
        if _rebeam.find(self.key) is None:
            await _pending.afollow(self.steps())

    def call(self, to: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> Any:
        return self._insist(target, lambda target: _rebeam.call(to, method, args, kwargs, target))

    def cast(self, to: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target) -> None:
        self.see_to("cast")
        _rebeam.cast(to, method, args, kwargs, target)

    def call_message(self, message: Any, timeout: Timeout) -> Any:
        """`rebeam.call` with such a handle."""
        return self._insist(
            Target(timeout), lambda target: _rebeam.call_message(self.key, "handle_call", message, target.timeout)
        )

    def _insist(self, target: Target, call: Callable[[Target], Any]) -> Any:
        """Calls, and starts the actor again as long as nobody has begun to handle it."""
        tries = _Tries(target)
        while True:
            try:
                return call(tries.target)
            except (ActorDied, NoProc) as error:
                tries.failed(error)
            _pending.follow(self.steps(), "call")

    async def acall(self, method: str, content: Any, target: Target, *, is_method: bool) -> Any:
        """The same as a task, for a method or for a message."""
        tries = _Tries(target)
        while True:
            try:
                return await _pending.acall(self.key, method, content, tries.target, is_method=is_method)
            except (ActorDied, NoProc) as error:
                tries.failed(error)
            await _pending.afollow(self.steps())


def spawn(what: Any, /, *args: Any, link: bool = False, **options: Unpack[ChildOptions]) -> ActorRef[Any]:
    """Starts an actor at run time, under the node's own supervisor; returns when it runs.

    It belongs to the actor that starts it: when that ends, it is stopped, too. By default it is `temporary`.

    Args:
        what: a function; or an actor's class, or what `child`, `script` and the like give.
        args: arguments of the function, or of the class's `init`.
        link: links it to this actor: the abnormal end of one ends the other.
        options: as for `child`; `kwargs` are the function's keyword arguments.

    Raises:
        ChildError: `start_failed`, with the reason, if its `init` fails.
        SpecError: an option that makes no sense, or something that cannot be an actor.
    """
    return _pending.follow(spawning(what, args, link, options), "spawn")


async def aspawn(what: Any, /, *args: Any, link: bool = False, **options: Unpack[ChildOptions]) -> ActorRef[Any]:
    """`spawn`, to be awaited. Cancelled, it starts the actor none the less, which ends with this one."""
    return await _pending.afollow(spawning(what, args, link, options))


def spawning(what: Any, args: tuple[Any, ...], link: bool, options: Mapping[str, Any]) -> _pending.Steps[ActorRef[Any]]:
    if not isinstance(what, _spec.ChildSpec):
        options = {"restart": "temporary", **options}
    spec = _spec_of(what, args, options)
    started = yield _rebeam.spawn(spec, is_owned=True, is_linked=link)
    return _handle(spec, spec.name or started["number"])


def _spec_of(what: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> _spec.ChildSpec[Any]:
    """What is to be started, as `child` would say it."""
    if isinstance(what, _spec.ChildSpec):
        if args or options:
            raise SpecError("a spec has its arguments and options already")
        return what
    if isinstance(what, type) and issubclass(what, Actor):
        return _spec.child(what, *args, **options)
    if callable(what):
        options = dict(options)
        kwargs = options.pop("kwargs", None) or {}
        plain = function(what, *args, **kwargs)
        return _named(what, args, kwargs, plain.id, plain.class_name, options)
    raise SpecError(f"{what!r} is neither a function nor an actor")


def _run_module(name: str, *argv: str) -> None:
    from rebeam import _main

    _main.run_module(name, argv)


def _run_script(path: str, *argv: str) -> None:
    from rebeam import _main

    _main.run_script(path, argv)


def stop(kind: str, text: str) -> Stop:
    """Made by `_rebeam`: what `receive` raises when a stop was ordered."""
    return Stop(kind if kind in ("normal", "shutdown") else text, detail=text if kind == "shutdown" else "")
