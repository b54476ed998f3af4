"""The package outside of any actor: what it exports, what it refuses, how it explains."""

import os
import pickle
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import assert_type

import pytest
import rebeam
from rebeam import Actor, ActorRef, Certificate, ExitReason, Pid, _dispatch, _errors, _failure, _pickling


class Counter(Actor):
    def incr(self, by: int = 1) -> int:
        return by

    async def slow(self, text: str) -> str:
        return text

    @rebeam.raises(KeyError)
    def get(self, key: str) -> float:
        return float(key)

    def _hidden(self) -> None: ...


def test_everything_public_is_exported_and_documented() -> None:
    public = {name for name in vars(rebeam) if not name.startswith("_")} | set(rebeam._LATER) - {"testing"}
    assert set(rebeam.__all__) == public - {"exit", "testing"}, "`import *` must not hide Python's own"
    undocumented = [name for name in rebeam.__all__ if not getattr(rebeam, name).__doc__]
    assert not undocumented


def test_importing_it_costs_no_heavy_modules() -> None:
    heavy = ("asyncio", "multiprocessing", "logging", "socket")
    code = f"import sys, rebeam; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_outside_an_actor_there_is_nobody_to_speak_to() -> None:
    counter = rebeam.ref(Counter, "counter")
    for attempt in (
        lambda: counter.call(Counter.incr, 2),
        lambda: counter.cast(Counter.incr),
        lambda: rebeam.whereis("counter"),
        rebeam.me,
        rebeam.shutdown,
    ):
        with pytest.raises(rebeam.NotAnActor, match="rebeam up"):
            attempt()


def types_of_calls(counter: ActorRef[Counter]) -> None:
    """Read by mypy, never run."""
    assert_type(counter.call(Counter.incr, 2), int)
    assert_type(counter.call(Counter.slow, "x"), str)
    assert_type(counter.call(Counter.get, "1"), float)
    assert_type(counter.cast(Counter.incr, by=2), None)
    assert_type(counter.options(timeout=1).call(Counter.incr), int)
    assert_type(rebeam.ref(Counter, "counter"), ActorRef[Counter])
    counter.call(Counter.incr, "2")  # type: ignore[call-overload]
    counter.call(Counter.incr, to=2)  # type: ignore[call-overload]
    counter.cast(Counter.slow)  # type: ignore[call-arg]


def test_references_and_pids_can_be_sent_and_compared() -> None:
    pid = Pid(0, 100, 7)
    for ref in (rebeam.ref(Counter, "counter").options(timeout=None, priority="high"), rebeam.ref(Counter, pid)):
        copy = pickle.loads(pickle.dumps(ref))
        assert copy == ref
        assert hash(copy) == hash(ref)
        assert copy._target == ref._target
    assert str(pid) == "<0.7>"
    with pytest.raises(ValueError, match="priority='urgent' is not known"):
        rebeam.ref(Counter, "counter").options(priority="urgent")  # type: ignore[arg-type]


def test_public_methods_and_no_others_can_be_called() -> None:
    resolve = _dispatch.resolver(Counter())
    assert resolve("incr")(2) == 2
    assert _dispatch.public_methods(Counter) == ["get", "incr", "slow"]
    for name in ("init", "terminate", "_hidden", "__class__", "icnr"):
        with pytest.raises(rebeam.BadCall, match=f"no public method `{name}`"):
            resolve(name)


def certificate() -> Certificate:
    reason = ExitReason("signal", "SIGSEGV")
    in_hand = (rebeam.InHand("work", "boss", 0.5, 1),)
    return Certificate(
        "a", Pid(0, 1, 2), 99, reason, in_hand, None, "", "restarts", 0.0, ("last",), 1.0, 0, 0.1, 1024, 1, None
    )


def test_errors_survive_the_way_to_another_actor() -> None:
    died = rebeam.ActorDied(certificate())
    copy = pickle.loads(pickle.dumps(died))
    assert str(copy) == "`a` died: signal(SIGSEGV), with `work` in hand"
    assert copy.reason == died.reason
    remote = pickle.loads(pickle.dumps(rebeam.RemoteError("m.E", "text", "traceback")))
    assert (remote.kind, remote.message, remote.remote_traceback) == ("m.E", "text", "traceback")


def test_a_remote_exception_is_of_its_own_class_where_that_can_be_had() -> None:
    error = _errors.remote("KeyError", "'x'", "the traceback", _rest(KeyError("x")))
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, rebeam.RemoteTraceback)
    assert "the traceback" in str(error.__cause__)
    for useless in (b"", b"rubbish", _rest("no exception"), _rest(SystemExit(3))):
        error = _errors.remote("m.E", "text", "the traceback", useless)
        assert isinstance(error, rebeam.RemoteError)
        assert str(error) == "m.E: text"


def _rest(error: object) -> bytes:
    """What comes with a remote exception: its pickle, its notes, what led to it."""
    return pickle.dumps((pickle.dumps(error), ["a note"], ["OSError: first"]))


def test_what_cannot_be_pickled_is_found_by_its_path() -> None:
    class Session:
        def __init__(self) -> None:
            self._lock = threading.Lock()

    cause = TypeError("cannot pickle")
    error = _pickling.explain(((1, threading.Lock()), {}), "work", cause)
    assert "`work` cannot be sent: args[1]: _thread.lock" in str(error)
    loop: list[object] = [threading.Lock()]
    loop.append(loop)
    error = _pickling.explain(((), {"deep": {"x": loop}}), "work", cause)
    assert "kwargs['deep']['x'][0]: _thread.lock" in str(error)
    error = _pickling.explain(((Session(),), {}), "work", cause)
    assert "args[0]._lock: _thread.lock" in str(error)


def test_failures_are_described_in_words_whatever_they_are() -> None:
    class NastyError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    kind, message, traceback, rest = _failure.describe(NastyError())
    assert kind.endswith("NastyError")
    assert message == "<its __str__ raised RuntimeError>"
    assert traceback
    assert pickle.loads(rest) == (None, [], [])
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            inner.add_note("a note")
            error = ValueError("outer")
            error.add_note("another")
            raise error from inner
    except ValueError as outer:
        _, _, traceback, rest = _failure.describe(outer)
    assert "a note" in traceback
    assert "direct cause" in traceback
    pickled, notes, chain = pickle.loads(rest)
    assert str(pickle.loads(pickled)) == "outer"
    assert (notes, chain) == (["another"], ["KeyError: 'inner'"])


def test_the_plugin_may_be_named_though_the_wheel_registers_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    info = tmp_path / "site" / "fake-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{n} = {m}\n" for n, m in points.items()))
    (tmp_path / "test_it.py").write_text('pytest_plugins = ["rebeam._pytest"]\ndef test_it(rebeam_running): pass\n')
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(root / "src")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_the_package_is_the_program() -> None:
    ran = subprocess.run([sys.executable, "-m", "rebeam", "version"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stdout.split()[:1] == ["rebeam"], (ran.stdout, ran.stderr)
    ran = subprocess.run([sys.executable, "-m", "rebeam", "upp"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "upp" in ran.stderr
