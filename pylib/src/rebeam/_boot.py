"""The life of a worker process, from its first line to its last. Run by `rebeam-worker`, never by users."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from rebeam import _rebeam, _runtime, _snapshot
from rebeam._errors import ActorExit, BadReturn, Stop

if TYPE_CHECKING:
    from rebeam._actor import Actor

LEDGER = 3
"""The descriptor by which everybody learns who has which name."""

CODE = 4
"""The descriptor of the memory that holds the project's code."""

CONTROL, ZYGOTE_LIFELINE = 5, 6
"""Further descriptors of a zygote."""

CHANNEL, PAGE, LIFELINE = 5, 6, 7
"""Further descriptors of a worker that is not forked."""


def main() -> NoReturn:
    """Does what the role on the command line says: `zygote`, or `worker` with the application in the environment."""
    role = sys.argv[1]
    _runtime.is_of_node = True
    sys.argv = ["rebeam"]
    _rebeam.map_ledger(LEDGER)
    _snapshot.begin(CODE)
    _prepare()
    if role == "zygote":
        gc.disable()
        # What every worker needs, once and shared.
        from rebeam import (  # noqa: F401
            _authkey,
            _dispatch,
            _exit_hooks,
            _failure,
            _functions,
            _logging,
            _main,
            _ref,
            _registry,
            _server,
            _spec,
            _stacks,
            _state,
            _stream,
        )

        _runtime.see_to_forks()
        start = _rebeam.attach_forked(CONTROL, ZYGOTE_LIFELINE, CODE)
        if start is None:
            _exit_hooks.run(is_import=True)
            _flush()
            os._exit(0)
    else:
        from rebeam import _app

        start = _rebeam.attach(CHANNEL, PAGE, LIFELINE)
        kind, _, source = os.environ.pop("REBEAM_APP").partition(":")
        try:
            _app.import_app(kind, source, os.environ.pop("REBEAM_PROJECT"))
        except BaseException as error:
            _end(_reason_of(error))
    _run(start)


def _prepare() -> None:
    """What every worker inherits from the zygote, and so does not pay for itself."""
    faulthandler.enable(2)
    signal.signal(_rebeam.EXIT_SIGNAL, _on_exit_signal)
    sys.unraisablehook = _rebeam.raise_exit_again
    sys.breakpointhook = _breakpoint
    # Whoever has no place for stacks yet writes none, rather than end.
    signal.signal(_rebeam.DUMP_SIGNAL, signal.SIG_IGN)
    signal.signal(_rebeam.TASKS_SIGNAL, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        # A line that was printed must not be lost with the process.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _breakpoint(*args: Any, **kwargs: Any) -> Any:
    """Python's debugger would read the end of standard input, and end the actor."""
    if os.environ.get("PYTHONBREAKPOINT"):
        return sys.__breakpointhook__(*args, **kwargs)
    import logging

    frame = sys._getframe(1)
    logging.getLogger("rebeam").warning(
        "breakpoint() at %s:%d is passed over: an actor has no terminal; set PYTHONBREAKPOINT=remote_pdb.set_trace "
        "(`pip install remote-pdb`) to debug over a socket, or look with `rebeam stack`",
        frame.f_code.co_filename,
        frame.f_lineno,
    )
    return None


def warm_up() -> None:
    """What a new worker does before it knows who it is; it may be forked ahead of need, and wait here.

    What every actor does first is done once for nobody: the pages that this makes the process's own cost no time when
    there is somebody to wait for it.
    """
    import pickle

    from rebeam import _dispatch, _logging, _server
    from rebeam._actor import Actor

    _after_fork()
    gc.enable()
    cls, args, kwargs = pickle.loads(pickle.dumps((Actor, (), {}), 5))
    actor: Actor = cls()
    awaited(actor.init(*args, **kwargs))
    resolve = _dispatch.resolver(actor)
    _server.receiver(actor, resolve)
    _server.system(actor)
    _logging.install()
    nobody: Any = {"label": "", "named": False, "number": 0, "pid": (0, 0, 0), "restarts": 0, "code": 0}
    identity(nobody)


def _after_fork() -> None:
    """What a fork copies and must not share: exit hooks, random numbers, places in files."""
    from rebeam import _app, _at_fork, _exit_hooks, _generators

    _at_fork.run_all()
    _exit_hooks.forked()
    _generators.seed_all()
    _app.reopen_files()


_Reason = tuple[str, str, "str | None"]


class Start(TypedDict):
    """What the handshake says, made by `_rebeam`."""

    start: bytes
    takes_over: int | None
    taken_from: int | None
    code: int
    pid: tuple[int, int, int]
    number: int
    label: str
    named: bool
    restarts: int
    process: dict[str, Any]
    concurrency: int
    log_level: int | None
    secret: bytes
    stacks: int | None


def _run(start: Start) -> NoReturn:
    """The life of an actor in a process of its own."""
    from rebeam import _authkey, _logging

    _authkey.set_key(start["secret"])
    _runtime.become(identity(start))
    _logging.install()
    if start["log_level"] is not None:
        _logging.set_level(start["log_level"])
    live(start)


def identity(start: Start) -> _runtime.Identity:
    """Who the handshake says that this is."""
    from rebeam import _ref

    me: _ref.ActorRef[Actor] = _ref.ActorRef(start["label"] if start["named"] else start["number"])
    pid, label, named = _ref.Pid(*start["pid"]), start["label"], start["named"]
    return _runtime.Identity(pid, me, label, named, start["restarts"], start["code"])


def live(start: Start) -> NoReturn:
    """From `init` to the last report."""
    from rebeam import _actor, _functions, _server, _state

    try:
        _settle_in(start)
        actor, result = _make(start)
        if isinstance(result, Stop):
            raise result
        info, then = (result.value, result.then) if isinstance(result, _actor.Info) else (None, result)
        ignored = result is _actor.Ignore
        if isinstance(actor, _server.GenServer) and not ignored:
            _server.settle(actor, "init", then)
        _rebeam.started(ignored, isinstance(actor, _functions.FunctionActor), info)
    except ActorExit:
        _leave_in_order()
    except BaseException as error:
        _end_unless_actor(error)
        _end(_reason_of(error))
    concurrency, code = start["concurrency"], start["code"]
    del start, result, info, then
    if ignored:
        _end(("normal", "", None))
    try:
        reason = _work(actor, concurrency)
        while reason[0] == "move" and _goes_on(actor, code):
            reason = _work(actor, concurrency)
        if reason[0] == "recycle":
            _state.give(actor, code, waits=False)
    except ActorExit:
        _leave_in_order()
    except BaseException as error:
        _end_unless_actor(error)
        reason = _reason_of(error)
    if reason[0] in ("recycle", "move"):
        _state.detach_finalizers()
        _leave_in_order()
    _end(_terminate(actor, reason))


def _make(start: Start) -> tuple[Actor, Any]:
    """The actor, ready to serve, and what its `init` returned."""
    from rebeam import _state

    actor: Actor
    if start["takes_over"] is None:
        cls, args, kwargs = _state.loads(start["start"], start["code"])
        actor = cls()
        return actor, awaited(actor.init(*args, **kwargs))
    taken = _state.take(start["takes_over"], start["code"])
    result = None
    if taken.runs_init:
        if not start["start"]:
            raise _state.CannotMoveError("its arguments were too large to be kept, and `init` needs them")
        cls, args, kwargs = _state.loads(start["start"], start["code"])
        actor = cls()
        result = awaited(actor.init(*args, **kwargs))
    else:
        actor = taken.cls.__new__(taken.cls)
    if taken.idle_left is not None:
        _rebeam.set_idle_left(*taken.idle_left)
    _state.take_over(actor, taken, is_new_code=start["taken_from"] != start["code"])
    if taken.is_moved:
        awaited(actor.after_move(taken.old_version))
    return actor, result


def _goes_on(actor: Actor, code: int) -> bool:
    """Gives the state to a process with new code and waits; whether this one is to go on."""
    from rebeam import _failure, _state

    try:
        awaited(actor.before_move())
        _state.give(actor, code, waits=True)
    except ActorExit:
        raise
    except _state.CannotMoveError as error:
        why, is_failure = str(error), False
    except Exception as error:
        why, is_failure = _failure.format_traceback(error), True
    else:
        if not _rebeam.wait_for_successor():
            return False
        awaited(actor.after_move(_state.version_of(actor, code)))
        return True
    awaited(actor.after_move(_state.version_of(actor, code)))
    _rebeam.cannot_move(why, is_failure)
    return True


def _end_unless_actor(error: BaseException) -> None:
    """Ends a process that the actor forked and that has come back here, as a process of Python's own would end."""
    if _rebeam.is_attached():
        return
    code: Any = 1
    if isinstance(error, SystemExit):
        code = error.code
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    _flush()
    os._exit(code or 0)


def _work(actor: Actor, concurrency: int) -> _Reason:
    """Does what the actor is for, until it is to end for the reason given."""
    from rebeam import _dispatch, _functions, _server, _spec

    if isinstance(actor, _functions.FunctionActor):
        try:
            actor._run()
        except Stop:
            if not _rebeam.is_recycled():
                raise
        # However it has left its `receive`: it starts over in the next process.
        return ("recycle" if _rebeam.is_recycled() else "normal"), "", None
    _warn_of_gevent()
    resolve = _dispatch.resolver(actor)
    receive = _server.receiver(actor, resolve)
    handlers = _rebeam.Handlers(resolve, receive, _server.system(actor))
    if _spec.overlaps(type(actor)):
        from rebeam import _loop

        reason = _loop.serve(handlers, receive, concurrency)
    else:
        reason = _rebeam.serve(handlers)
    stream = sys.modules.get("rebeam._stream")
    if stream is not None and reason[0] in ("move", "recycle"):
        stream.close_all()
    return reason


def _warn_of_gevent() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket") and _runtime.me().restarts == 0:
        import logging

        logging.getLogger("rebeam").warning(
            "gevent has patched this process, and greenlets do not run while an actor waits for mail: "
            "let them run in a function of their own (`rebeam.function`)"
        )


def awaited(result: object) -> object:
    """The result of a callback that may be `async def`."""
    from types import CoroutineType

    if isinstance(result, CoroutineType):
        from rebeam import _loop

        return _loop.run(result)
    return result


def _settle_in(start: Start) -> None:
    """Makes this process the actor's own: its CPUs, its niceness, where stacks are written."""
    if _rebeam.is_virtual():
        return
    options = start["process"]
    if options["cpus"]:
        try:
            os.sched_setaffinity(0, options["cpus"])
        except OSError as error:
            there = sorted(os.sched_getaffinity(0))
            raise OSError(f"cpus={options['cpus']}: {error.strerror}; this process may use {there}") from None
    if options["nice"] is not None:
        try:
            os.nice(options["nice"])
        except OSError as error:
            hint = "only root may ask for more than others have"
            raise OSError(f"nice={options['nice']}: {error.strerror}; {hint}") from None
    if start["stacks"] is not None:
        from rebeam import _stacks

        _stacks.write_to(start["stacks"])


def _on_exit_signal(number: int, frame: object) -> None:
    if _rebeam.exit_ordered():
        exit_now()


def exit_now() -> None:
    """Ends this actor from within: one that expects SIGTERM by that."""
    global _is_leaving
    _is_leaving = True
    if _expects_sigterm and callable(signal.getsignal(signal.SIGTERM)):
        signal.raise_signal(signal.SIGTERM)
    else:
        raise ActorExit


_is_leaving = _expects_sigterm = False


def expect_sigterm() -> None:
    """Has this actor stopped by SIGTERM, which raises `ActorExit` unless its program has said, or says, what to do."""
    global _expects_sigterm
    _expects_sigterm = True
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def forget_sigterm() -> None:
    """In a process that this one has forked: SIGTERM ends it as any other."""
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, frame: object) -> None:
    if _is_leaving:
        raise ActorExit
    # Somebody else has sent it: to this process, or to one that it forked.
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _leave_in_order() -> NoReturn:
    """The same, exit hooks included."""
    try:
        _run_exit_hooks()
    except ActorExit:
        # The time for that is over.
        pass
    _leave()


def _leave() -> NoReturn:
    """Ends this process; or this thread, where actors share a process (`rebeam.testing`)."""
    if _rebeam.is_virtual():
        raise EndOfActor
    _rebeam.leave()
    _flush()
    os._exit(0)


class EndOfActor(BaseException):
    """The life of an actor that is a thread is over."""


def _terminate(actor: Actor, reason: _Reason) -> _Reason:
    from rebeam._exit import ExitReason

    try:
        awaited(actor.terminate(ExitReason(*reason)))
    except ActorExit:
        _leave_in_order()
    except BaseException as error:
        return _reason_of(error)
    return reason


def _reason_of(error: BaseException) -> _Reason:
    from rebeam import _failure

    if isinstance(error, Stop):
        if error.reason in ("normal", "shutdown"):
            return error.reason, error.detail, None
        return "other", str(error.reason), None
    if isinstance(error, BadReturn):
        return "bad_return", str(error), None
    if isinstance(error, SystemExit):
        # MAP-02: an exit code of 0 or None is a clean end.
        code = error.code
        if code is None or code == 0:
            return "normal", "", None
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        return "exit_code", str(code), None
    text = f"{_failure.kind_of(error)}: {_failure.message_of(error)}"
    return "exception", text, _failure.format_traceback(error)


def _end(reason: _Reason) -> NoReturn:
    """Makes the final report, runs exit hooks, and ends the process without waiting for threads."""
    _flush()
    state = sys.modules.get("rebeam._state")
    if state is not None and reason[0] not in ("normal", "shutdown"):
        # Another process may go on with what this one has taken over.
        state.detach_finalizers()
    # First the reason: a hook that crashes or hangs is not to hide it.
    try:
        _rebeam.report(*reason)
    except (ActorExit, OSError):
        # Nobody is left to be told.
        _leave()
    _leave_in_order()


def _run_exit_hooks() -> None:
    if _rebeam.is_virtual():
        return
    from rebeam import _exit_hooks

    for hook in (_finish_loop, _exit_hooks.run):
        try:
            hook()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)


def _finish_loop() -> None:
    """Ends what is left on the event loop of this actor, if it has one."""
    loop = sys.modules.get("rebeam._loop")
    if loop is not None:
        loop.finish()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
