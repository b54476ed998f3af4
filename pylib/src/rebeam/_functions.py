"""Functions, modules and scripts as actors. They take their mail themselves, with `rebeam.receive`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from rebeam import _rebeam, _spec
from rebeam._actor import Actor
from rebeam._errors import ChildError, SpecError, Stop
from rebeam._ref import ActorRef, Via

if TYPE_CHECKING:
    from collections.abc import Callable

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


def module(name: str, *argv: str, **options: Any) -> _spec.ChildSpec[FunctionActor]:
    """A module as a child of a supervisor: it is run as `python -m NAME ARGV…` would, and the actor ends with it.

    Args:
        name: the module's name.
        argv: its arguments, as `sys.argv[1:]` has them.
        options: as for `child`.

    Raises:
        SpecError: an argument that is no text; an option that makes no sense.
    """
    return _named(_run_module, (name, *_texts(name, argv)), {}, name.rpartition(".")[2], name, options)


def script(path: str, *argv: str, **options: Any) -> _spec.ChildSpec[FunctionActor]:
    """A file as a child of a supervisor: it is run as `python FILE ARGV…` would, and the actor ends with it.

    Args:
        path: the file, relative to the project's directory. Its classes can be sent to others, who import the file for
            them: what must not run there stands under `if __name__ == "__main__":`.
        argv: its arguments, as `sys.argv[1:]` has them.
        options: as for `child`.

    Raises:
        SpecError: an argument that is no text; an option that makes no sense.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    return _named(_run_script, (path, *_texts(path, argv)), {}, name, path, options)


def _texts(program: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    for argument in argv:
        if not isinstance(argument, str):
            raise SpecError(f"`{program}`: the argument {argument!r} is no text; write `{str(argument)!r}`")
    return argv


def child_options(spec: _spec.ChildSpec[FunctionActor], **options: Any) -> _spec.ChildSpec[FunctionActor]:
    """The same function as a child with options of `child`, such as `name` and `restart`."""
    _, args, _ = spec.start
    function, arguments, kwargs = args
    return _named(function, arguments, kwargs, spec.id, spec.class_name, options)


def _named(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    id: str,
    label: str,
    options: dict[str, Any],
) -> _spec.ChildSpec[FunctionActor]:
    defaults = {"restart": "transient", "terminate_on_shutdown": False, "id": options.get("name") or id}
    spec = _spec.child(FunctionActor, function, args, kwargs, **{**defaults, **options})
    return replace(spec, class_name=label)


@overload
def start(what: type[A], /, *args: Any, supervisor: str | None = None, **options: Any) -> ActorRef[A]: ...  # pyright: ignore[reportOverlappingOverload]
@overload
def start(what: _spec.ChildSpec[A], /, *, supervisor: str | None = None) -> ActorRef[A]: ...
@overload
def start(
    what: Callable[..., Any], /, *args: Any, supervisor: str | None = None, **options: Any
) -> ActorRef[FunctionActor]: ...
def start(what: Any, /, *args: Any, supervisor: str | None = None, **options: Any) -> ActorRef[Any]:
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
    spec = _spec_of(what, args, options)
    if supervisor is None:
        number = _rebeam.spawn(spec, is_owned=False, is_linked=False)["number"]
    else:
        number = _rebeam.supervisor(supervisor, "start_child", spec)["number"]
    return ActorRef(spec.name or number)


def get_or_start(
    key: str | Via, actor: type[A], /, *args: Any, supervisor: str | None = None, **options: Any
) -> ActorRef[A]:
    """The actor with this name or key, which is started if there is none. Of many callers at once one starts it, and
    all get it, once its `init` has returned.

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
    if not isinstance(key, (str, Via)):
        raise TypeError(f"{key!r} is no name, and not what `via` gives")
    if _rebeam.find(key) is None or _rebeam.wait_for(key, 0.0) is None:
        spec = _spec_of(actor, args, {**options, "name": key})
        is_there = False
        while not is_there:
            try:
                start(spec, supervisor=supervisor)
                is_there = True
            except ChildError as error:
                is_there = _is_started_by_another(key, error)
    return ActorRef(key)


def _is_started_by_another(key: str | Via, error: ChildError) -> bool:
    """Waits for whoever is in the way of a start; False if it is our turn again, and the error if that is no use."""
    if error.pid is not None:
        # Its `init` may be under way, and may fail.
        is_up = _rebeam.wait_for(error.pid, None) is not None
        if is_up and _rebeam.find(key) is None:
            # It is another child with the same id.
            raise error
        return is_up
    is_taken = error.reason is not None and error.reason.kind == "name_taken"
    if error.kind == "restarting" or is_taken:
        return _rebeam.wait_for(key, 1.0) is not None
    raise error


def spawn(what: Any, /, *args: Any, link: bool = False, **options: Any) -> ActorRef[Any]:
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
    if not isinstance(what, _spec.ChildSpec):
        options = {"restart": "temporary", **options}
    spec = _spec_of(what, args, options)
    number = _rebeam.spawn(spec, is_owned=True, is_linked=link)["number"]
    return ActorRef(spec.name or number)


def _spec_of(what: Any, args: tuple[Any, ...], options: dict[str, Any]) -> _spec.ChildSpec[Any]:
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
