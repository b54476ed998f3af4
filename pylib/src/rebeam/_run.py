"""`rebeam.run`: a tree or a function of an ordinary script, run by the program `rebeam` as a process of its own.

What is to be run is pickled into a folder, beside a small application that loads it. It must not know actors.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from rebeam import _client, _errors, _failure, _functions, _main, _pickling, _rebeam, _spec

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_MAIN = "main"
"""The name of the actor that a function is."""


@overload
def run(what: _spec.Supervisor, /) -> None: ...
@overload
def run(what: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
def run(what: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Runs a tree, or a function as an actor, from an ordinary script; returns when it has ended.

    It is called under `if __name__ == "__main__":`, since actors import the script for its classes and functions. A
    tree is run as by `rebeam up`, and Ctrl-C stops it. A function is run on a node of its own, in which it may start
    actors and use `rebeam.Executor`; what it prints is printed, and the node ends with it. In an actor, which is what
    this script is when `rebeam.script` runs it, a function is simply called.

    Args:
        what: a `Supervisor`, or a function.
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
        return what(*args, **kwargs)
    with tempfile.TemporaryDirectory(prefix="rebeam-", dir=_short_directory()) as folder:
        return _run_tree(what, folder) if is_tree else _run_function(what, args, kwargs, folder)


def _short_directory() -> str | None:
    """Where the control socket may lie, whose path has a limit of some 100 bytes."""
    return "/tmp" if len(tempfile.gettempdir()) > 40 else None


def _run_tree(tree: _spec.Supervisor, folder: str) -> None:
    command = [_client.program(), "up", _application(tree, folder)]
    with _start(command) as node:
        code, _ = _until_interrupted(node, node.wait)
    if code:
        raise SystemExit(code)


def _run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], folder: str) -> Any:
    outcome = os.path.join(folder, "outcome.pickle")
    spec = _functions.function(_keep_outcome, outcome, os.getcwd(), function, args, kwargs)
    main = _functions.child_options(spec, name=_MAIN, restart="temporary", significant=True, shutdown=20.0)
    tree = _spec.Supervisor([main], auto_shutdown="any_significant")
    why = _pickling.why_not(function)
    if why is not None and _main.script_name() is not None:
        name = getattr(function, "__qualname__", repr(function))
        raise _errors.Unpicklable(f"the function `{name}` cannot be sent: its actor imports it by its name: {why}")
    program, application = _client.program(), _application(tree, folder)
    command = [program, "run", application, "--log-format", "json", "--runtime-dir", folder]
    with _start(command, stdout=subprocess.PIPE, encoding="utf-8") as node:
        _, interrupt = _until_interrupted(node, lambda: _relay(node))
        code, later = _until_interrupted(node, node.wait)
    if interrupt or later:
        raise interrupt or later or KeyboardInterrupt
    if not os.path.exists(outcome):
        name = getattr(function, "__name__", repr(function))
        what = f"`{name}` did not run (exit code {code})" if code else f"the process of `{name}` has died"
        raise RuntimeError(what)
    with open(outcome, "rb") as file:
        value, error, exit = pickle.load(file)
    if error is not None:
        raise _errors.remote(*error)
    if exit is not None:
        raise SystemExit(*exit)
    return value


def _keep_outcome(
    path: str, directory: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Runs the function in its actor, and writes down what came of it."""
    os.chdir(directory)
    try:
        content = pickle.dumps((function(*args, **kwargs), None, None))
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
    content = _main.dumps(tree)
    with open(os.path.join(folder, "tree.pickle"), "wb") as file:
        file.write(content)
    path = os.path.join(folder, "script.py")
    paths = [os.path.abspath(directory) for directory in sys.path]
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"import pickle, sys\nsys.path[:] = dict.fromkeys([*{paths!r}, *sys.path])\n"
            f"with open({os.path.join(folder, 'tree.pickle')!r}, 'rb') as file:\n    tree = pickle.load(file)\n"
        )
    return path


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


def _relay(node: subprocess.Popen[str]) -> None:
    """Prints what the function prints, and what the node has to say of warnings and worse."""
    assert node.stdout is not None
    for line in node.stdout:
        try:
            record = json.loads(line)
        except ValueError:
            print(line, end="", file=sys.stderr)
            continue
        logger, text = record.get("logger"), str(record.get("message"))
        if logger == "stdout":
            print(text, flush=True)
        elif logger == "stderr" and record.get("actor") == _MAIN:
            print(text, file=sys.stderr, flush=True)
        elif record.get("level") != "info" or record.get("actor") == _MAIN:
            print(f"{record.get('actor')} | {text}", file=sys.stderr, flush=True)
