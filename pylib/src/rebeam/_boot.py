"""The life of a worker process, from its first line to its last. Run by `rebeam-worker`, never by users."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from rebeam import _rebeam, _runtime

if TYPE_CHECKING:
    from rebeam._actor import Actor

CONTROL, ZYGOTE_LIFELINE = 3, 4
"""Descriptors of a zygote."""

CHANNEL, PAGE, LIFELINE = 3, 4, 5
"""Descriptors of a worker that is not forked."""


def main() -> NoReturn:
    """Does what the role on the command line says: `zygote`, or `worker` with the application in the environment."""
    role = sys.argv[1]
    sys.argv = ["rebeam"]
    _prepare()
    if role == "zygote":
        gc.disable()
        # What every worker needs, once and shared.
        from rebeam import _dispatch, _failure, _logging, _ref  # noqa: F401

        start = _rebeam.attach_forked(CONTROL, ZYGOTE_LIFELINE)
        if start is None:
            os._exit(0)
        gc.enable()
        _after_fork()
    else:
        from rebeam import _app

        start = _rebeam.attach(CHANNEL, PAGE, LIFELINE)
        kind, _, source = os.environ.pop("REBEAM_APP").partition(":")
        try:
            _app.import_app(kind, source)
        except BaseException as error:
            _end(_reason_of(error))
    _run(start)


def _prepare() -> None:
    import faulthandler

    faulthandler.enable(2)
    for stream in (sys.stdout, sys.stderr):
        # A line that was printed must not be lost with the process.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


def _after_fork() -> None:
    """What a fork copies and must not: exit hooks of the zygote and the state of global random generators."""
    import atexit

    atexit._clear()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _run(start: tuple[bytes, tuple[int, int, int], int, str, bool, int]) -> NoReturn:
    import pickle

    from rebeam import _actor, _dispatch, _logging, _ref

    content, pid, number, label, named, restarts = start
    me: _ref.ActorRef[Actor] = _ref.ActorRef(label if named else number)
    _runtime.become(_runtime.Identity(_ref.Pid(*pid), me, label, named, restarts))
    _logging.install()
    try:
        cls, args, kwargs = pickle.loads(content)
        actor: Actor = cls()
        ignored = actor.init(*args, **kwargs) is _actor.Ignore
    except BaseException as error:
        _end(_reason_of(error))
    del content, start, args, kwargs
    _rebeam.started(ignored)
    if ignored:
        _end(("normal", "", None))
    try:
        reason = _rebeam.serve(_dispatch.resolver(actor))
    except BaseException as error:
        reason = _reason_of(error)
    _end(_terminate(actor, reason))


_Reason = tuple[str, str, "str | None"]


def _terminate(actor: Actor, reason: _Reason) -> _Reason:
    from rebeam._exit import ExitReason

    try:
        actor.terminate(ExitReason(*reason))
    except BaseException as error:
        return _reason_of(error)
    return reason


def _reason_of(error: BaseException) -> _Reason:
    from rebeam import _failure
    from rebeam._errors import Stop

    if isinstance(error, Stop):
        return (error.reason if error.reason in ("normal", "shutdown") else "other"), str(error.reason), None
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
    """Runs exit hooks, makes the final report and ends the process without waiting for threads."""
    import atexit

    try:
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    _rebeam.report(*reason)
    os._exit(0)
