"""`rebeam.run`: a tree or a function of an ordinary script, run by the program `rebeam` as a process of its own.

What is to be run is pickled into a folder, beside a small application that loads it. It must not know actors.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

from rebeam import _authkey, _client, _errors, _failure, _functions, _main, _pickling, _rebeam, _spec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
R = TypeVar("R")

_MAIN = "main"
"""The name of the actor that a function is."""


@overload
def run(what: _spec.Supervisor, /) -> None: ...
@overload
def run(what: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
@overload
def run(what: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
def run(what: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Runs a tree, or a function as an actor, from an ordinary script; returns when it has ended.

    It is called under `if __name__ == "__main__":`, since actors import the script for its classes and functions. A
    tree is run as by `rebeam up`, and Ctrl-C stops it. A function is run on a node of its own, in which it may start
    actors and use `rebeam.Executor`; what it prints is printed, and the node ends with it. In an actor, which is what
    this script is when `rebeam.script` runs it, a function is simply called.

    Args:
        what: a `Supervisor`, or a function, which may be `async def`.
        args, kwargs: the function's arguments.

    Returns:
        What the function returned.

    Raises:
        Exception: what the function raised, with its traceback as the cause.
        SystemExit: the function has raised it; or the tree has failed, with the exit code of `rebeam up`.
        Unpicklable: what is to be run cannot be sent.
        RuntimeError: the function's process has died, or this is called where it cannot be.
        FileNotFoundError: there is no program `rebeam`.
    """
    if _main.is_imported(sys._getframe(1).f_globals.get("__name__")):
        raise RuntimeError(f"`rebeam.run` is called as the script is imported: {_main.GUARD}")
    is_tree = isinstance(what, _spec.Supervisor)
    if not is_tree and not callable(what):
        raise TypeError(f"{what!r} is neither a supervisor nor a function")
    if _rebeam.is_attached():
        if is_tree:
            raise RuntimeError("this is an actor already, of a node that has its tree")
        return _value_of(what, args, kwargs)
    with tempfile.TemporaryDirectory(prefix="rebeam-", dir=_short_directory()) as folder:
        return _run_tree(what, folder) if is_tree else _run_function(what, args, kwargs, folder)


def _short_directory() -> str | None:
    """Where the control socket may lie, whose path has a limit of some 100 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > 40 else None


def _run_tree(tree: _spec.Supervisor, folder: str) -> None:
    command = [_client.program(), "up", "--no-reload", _application(tree, folder)]
    with _start(command) as node:
        code, _ = _until_interrupted(node, node.wait)
    if code:
        raise SystemExit(code)


def _run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: str) -> Any:
    name = getattr(function, "__qualname__", repr(function))
    why = _pickling.why_not(function)
    if _main.is_in_no_file(function):
        raise _errors.Unpicklable(f"the function `{name}` stands in no file, and its actor cannot import it: save it")
    if why is not None:
        raise _errors.Unpicklable(f"the function `{name}` cannot be sent: its actor imports it by its name: {why}")
    surroundings = _Surroundings(os.getpid(), os.getcwd(), list(sys.argv), _streams())
    outcome = os.path.join(folder, "outcome.pickle")
    spec = _functions.function(_keep_outcome, outcome, surroundings, function, args, kwargs)
    main = _functions.child_options(spec, name=_MAIN, restart="temporary", significant=True, shutdown=20.0)
    tree = _spec.Supervisor([main], auto_shutdown="any_significant")
    command = [_client.program(), "run", _application(tree, folder), "--log-format", "json", "--runtime-dir", folder]
    with _start(command, stdout=subprocess.PIPE, encoding="utf-8") as node:
        died, interrupt = _until_interrupted(node, lambda: _relay(node))
        code, later = _until_interrupted(node, node.wait)
    if interrupt or later:
        raise interrupt or later or KeyboardInterrupt
    if not os.path.exists(outcome):
        if code == 0 and died is None:
            # It ended itself, or the node, in good order.
            return None
        died = died or f"did not run (exit code {code})"
        raise RuntimeError(f"the process of `{name}` {died}")
    with open(outcome, "rb") as file:
        value, error, exit = pickle.load(file)
    if error is not None:
        raise _errors.remote(*error)
    if exit is not None:
        raise SystemExit(*exit)
    return value


class _Surroundings(NamedTuple):
    """What a function finds around itself as the script would.

    Attributes:
        os_pid: the script's process.
        streams: the numbers of its standard streams that the function has for its own.
    """

    os_pid: int
    directory: str
    argv: list[str]
    streams: list[int]

    def take_over(self) -> None:
        """Makes them this process's own."""
        os.chdir(self.directory)
        sys.argv = self.argv
        for number in self.streams:
            try:
                opened = os.open(
                    f"/proc/{self.os_pid}/fd/{number}", os.O_APPEND | (os.O_WRONLY if number else os.O_RDONLY)
                )
            except OSError:
                # A socket, or a system without that: what is printed is relayed.
                continue
            os.dup2(opened, number)
            os.close(opened)
            if number == 0:
                sys.stdin = open(0, closefd=False)  # noqa: SIM115  (as long as the process lives)


def _streams() -> list[int]:
    """The standard streams that a function may use directly: not those that somebody has replaced here, as notebooks
    and pytest do."""
    found = [0]
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream.fileno() == number:
                stream.flush()
                found.append(number)
        except (OSError, ValueError, AttributeError):
            continue
    return found


def _value_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = function(*args, **kwargs)
    if inspect.iscoroutine(value):
        from rebeam import _loop

        value = _loop.run(value)
    return value


def _keep_outcome(
    path: str, around: _Surroundings, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Runs the function in its actor, and writes down what came of it."""
    around.take_over()
    try:
        value = _value_of(function, args, kwargs)
        try:
            content = pickle.dumps((value, None, None))
        except Exception as error:
            raise _errors.BadResult(_pickling.explain_result(value, function.__name__, error)) from None
    except (_errors.ActorExit, _errors.Stop):
        raise
    except SystemExit as exit:
        content = pickle.dumps((None, None, (exit.code,)))
    except BaseException as error:
        content = pickle.dumps((None, _failure.describe(error), None))
    with open(path + ".part", "wb") as file:
        file.write(content)
    os.replace(path + ".part", path)


def _application(tree: _spec.Supervisor, folder: str) -> str:
    """Where the program finds the tree."""
    application = _Application(_main.dumps(tree), _main.script(), [os.path.abspath(one) for one in sys.path])
    pickled = os.path.join(folder, "application.pickle")
    with open(pickled, "wb") as file:
        pickle.dump((tuple(application), _authkey.own_key()), file)
    path = os.path.join(folder, "application.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"from rebeam import _run\n\ntree = _run.load({pickled!r})\n")
    return path


class _Application(NamedTuple):
    """What is run, and what has to be imported for it."""

    tree: bytes
    script: str | None
    sys_path: list[str]


def load(path: str) -> _spec.Supervisor:
    """The tree that a script runs; in the process that makes its actors."""
    with open(path, "rb") as file:
        fields, key = pickle.load(file)
    application = _Application(*fields)
    if key is not None:
        _authkey.prefer(key)
    sys.path[:] = dict.fromkeys([*application.sys_path, *sys.path])
    if application.script is not None:
        _main.import_script(application.script)
    tree: _spec.Supervisor = pickle.loads(application.tree)
    return tree


def _start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Starts a node that ends with this process. An interrupt reaches it by `_until_interrupted` alone."""
    environment = {"REBEAM_PYTHON": sys.executable, **os.environ, "REBEAM_PARENT": str(os.getpid())}
    return subprocess.Popen(command, env=environment, process_group=0, **options)


def _until_interrupted(node: subprocess.Popen[Any], wait: Callable[[], R]) -> tuple[R, KeyboardInterrupt | None]:
    """Waits for something of a node, and passes interrupts on to it: one stops it, another hurries it."""
    interrupt = None
    while True:
        try:
            return wait(), interrupt
        except KeyboardInterrupt as error:
            interrupt = error
            node.send_signal(signal.SIGINT)


def _relay(node: subprocess.Popen[str]) -> str | None:
    """Prints what the function prints, and what the node has to say of warnings and worse.

    Returns:
        How the function's process died, if it did.
    """
    assert node.stdout is not None
    died = None
    for line in node.stdout:
        try:
            record = json.loads(line)
            actor, logger, text = record.get("actor"), record.get("logger"), str(record.get("message"))
        except (ValueError, AttributeError):
            print(line, end="", file=sys.stderr)
            continue
        if logger == "stdout":
            print(text, flush=True)
        elif logger == "stderr" and actor == _MAIN:
            print(text, file=sys.stderr, flush=True)
        elif record.get("level") != "info" or actor == _MAIN:
            certificate = record.get("certificate") or {}
            more = record.get("exception") or certificate.get("traceback") or certificate.get("stacks") or ""
            print(f"{actor} | {text}", *more.splitlines(), sep="\n  ", file=sys.stderr, flush=True)
            if actor == _MAIN and certificate:
                died = text
    return died
