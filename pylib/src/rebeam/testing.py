"""Tools for testing actors: a tree in a test, with a clock that the test moves on, and with crashes on order.

    from rebeam.testing import running

    def test_a_counter_comes_back():
        with running(Supervisor([child(Counter, 10, name="counter")])) as node:
            counter = rebeam.ref(Counter, "counter")
            assert counter.call(Counter.incr) == 11
            node.crash("counter")
            assert counter.call(Counter.incr) == 11

The test itself is an actor, named `test`: everything that works in an actor works in it. `running` has all actors in
the process of the test, each in a thread; the supervisor is the real one, and messages are pickled as they always are.
A thread that the test or an actor starts speaks as that one; while an actor waits for such a thread, time stands still.
A handler that ends the whole process (`os._exit`, a fault in C) ends the test, too: use `crash`, or `processes`, which
runs a node as `rebeam up` does and looks at it from outside.

With pytest, the fixtures `rebeam_running` and `rebeam_processes` do the same, and end what they started.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import json
import os
import shutil
import signal as signals
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rebeam import _boot, _client, _errors, _exit, _rebeam, _runtime, _spec, _state
from rebeam._actor import Actor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rebeam._client import ActorInfo
    from rebeam._ref import ActorRef
    from rebeam._server import DeadLetter

__all__ = ["Change", "Node", "ProcessNode", "TreeFailedError", "processes", "running"]

NAME = "test"
"""The name of the actor that the test is."""

_PATIENCE = 10.0


class TreeFailedError(Exception):
    """The tree did not come up; the text says which child failed, and why."""


class Change(NamedTuple):
    """What a reload was to one actor.

    Attributes:
        actor: its name or path.
        outcome: `moved`, `restarted` (its state cannot be moved, or is not to be), `failed` (the old code goes on), or
            `stays`.
        why: what is to be said of that: a traceback, or the part of its state that does not move; else empty.
    """

    actor: str
    outcome: str
    why: str


class _Test(Actor):
    """Stands in the tree for the test itself."""


class Node:
    """A node in the process of the test, made by `running`. Its time stands still unless `advance` moves it on.

    Timers, call deadlines, `receive`, idle times, backoff, restart windows and stop limits follow that time. `time` and
    `asyncio.sleep` of handlers do not. While the test itself waits and everybody else does, too, it passes by itself.
    """

    def __init__(self, tree: _spec.Supervisor, seed: int | None = None) -> None:
        own = _spec.child(_Test, name=NAME, restart="temporary", shutdown="brutal_kill")
        under = _copy_of(tree)
        root = _spec.Supervisor([own], max_restarts=1_000_000)
        root.children.append(under)
        self._root = root
        self._node = _rebeam.Node(root, seed)
        self._threads: dict[int, threading.Thread] = {}
        self._living: set[int] = set()
        self._raising = threading.Lock()
        self._own = 0
        self._is_attached = threading.Event()
        self._driver = threading.Thread(target=self._drive, name="rebeam-node", daemon=True)

    def advance(self, seconds: float) -> None:
        """Moves time on: whatever becomes due happens in order, each with what follows from it."""
        if not seconds >= 0:
            raise ValueError(f"time cannot move on by {seconds!r} seconds")
        left = seconds
        while left > 0:
            self._come_to_rest()
            step = self._node.advance(left)
            left -= max(step, 0.0)
            if step == 0 and left > 0:
                # Something was due at this very moment.
                continue
            if left < 1e-9:
                break
        self._come_to_rest()

    def _come_to_rest(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._node.idle(0.5, NAME)

    def now(self) -> float:
        """Seconds since the node was started, of its own time."""
        return self._node.now()

    def idle(self, timeout: float = _PATIENCE) -> None:
        """Waits until every actor waits for something that only time or the test can bring.

        Args:
            timeout: seconds of real time.

        Raises:
            RuntimeError: it did not come to that; the text says who is busy.
        """
        self._node.idle(timeout, NAME)

    def crash(self, actor: ActorRef[Any] | str, signal: int | str = signals.SIGKILL) -> None:
        """Ends an actor as a signal would, at once and without `terminate`.

        Args:
            actor: a handle, or its name.
            signal: a number, or a name such as `SIGSEGV`.

        Raises:
            NoProc: there is no such actor that lives.
            ValueError: there is no such signal.
        """
        label = actor if isinstance(actor, str) else str(actor._address)
        if not self._node.crash(label, _signal(signal)):
            raise _errors.NoProc(f"there is no living actor `{label}`")

    def drop_next(self, actor: ActorRef[Any] | str, count: int = 1) -> None:
        """Has the next messages to an actor get lost on their way, calls and casts alike."""
        self._node.drop_next(actor if isinstance(actor, str) else str(actor._address), count)

    def reload(self, old: type[Actor], new: type[Actor]) -> list[Change]:
        """Moves the actors of a class to another class, as `rebeam up` does when its file is saved.

        Returns when all have moved. A death undoes the move until they have handled 10 messages or lived for 10 s.

        Args:
            old: the class that runs: the one that the tree names, or the last one that was given as `new`.
            new: the one that takes over state and mail; it replaces the old one from now on.

        Returns:
            What became of each actor, by name.

        Raises:
            TypeError: one of the two is no class of actors.
        """
        for cls in (old, new):
            if not (isinstance(cls, type) and issubclass(cls, Actor)):
                raise TypeError(f"node.reload({old!r}, {new!r}): name two classes of actors")
        declared = _state.declared(old)
        _state.replace(declared, new)
        changes = self._node.reload(self._root, f"{declared.__module__}.{declared.__qualname__}", _PATIENCE)
        return [Change(*change) for change in changes]

    @property
    def deaths(self) -> list[_exit.Certificate]:
        """The certificates of all ends that nobody ordered, oldest first."""
        return [_exit.certificate(fields) for fields in self._node.deaths()]

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The messages that nobody handled, oldest first."""
        return self._node.dead_letters()

    def _start(self) -> None:
        self._driver.start()
        self._node.boot()
        self._attach()
        how = self._node.wait_up(60.0)
        if how is not None:
            self._close()
            raise TreeFailedError(how)

    def _attach(self) -> None:
        """Makes the calling thread the actor `test`."""
        if not self._is_attached.wait(_PATIENCE):
            raise TreeFailedError("the node does not start")
        start = _rebeam.attach_in_process(*self._descriptors)
        _runtime.identities[threading.get_ident()] = _boot.identity(start)
        _rebeam.take_own_mail()
        _rebeam.started(False, True, None)

    def _close(self) -> None:
        self._node.stop(False)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            try:
                self._node.wait_ended(0.02)
                break
            except RuntimeError:
                # A stop may take as long as it is allowed to: in its own time.
                self._node.advance(60.0)
        else:
            self._node.stop(True)
            self._node.wait_ended(_PATIENCE)
        _rebeam.detach_in_process()
        _runtime.identities.pop(threading.get_ident(), None)
        _state.forget_stand_ins()
        self._driver.join(_PATIENCE)
        for thread in self._threads.values():
            thread.join(_PATIENCE)
        left = [thread.name for thread in self._threads.values() if thread.is_alive()]
        _runtime.identities.clear()
        if left:
            raise RuntimeError(f"these actors did not end: {', '.join(left)}; do their handlers wait for something?")

    def _drive(self) -> None:
        is_over = False
        was_stuck = False
        while not is_over:
            is_stuck = self._node.is_stuck()
            if is_stuck and was_stuck:
                # The test itself waits: for time, most likely.
                self._node.advance(1.0)
            was_stuck = is_stuck
            for command in self._node.step():
                if command.what == "over":
                    is_over = True
                elif command.what == "exit":
                    self._unwind(command.process)
                elif command.label == NAME and not self._is_attached.is_set():
                    self._own = command.process
                    self._descriptors = (command.channel, command.page)
                    self._is_attached.set()
                else:
                    # With the context of nobody: what the test has set is not the actor's.
                    run = contextvars.Context().run
                    args = (self._live, command.process, command.channel, command.page)
                    thread = threading.Thread(target=run, args=args, name=command.label, daemon=True)
                    self._threads[command.process] = thread
                    thread.start()

    def _live(self, process: int, channel: int, page: int) -> None:
        self._living.add(process)
        try:
            start = _rebeam.attach_in_process(channel, page)
            _runtime.identities[threading.get_ident()] = _boot.identity(start)
            _boot.live(start)
        except (_boot.EndOfActor, _errors.ActorExit, OSError):
            pass
        finally:
            # From here on no exit is raised in this thread: another may get its number when it is over. One that is on
            # its way comes at a call, even at that of a function that would catch it.
            is_leaving = False
            while not is_leaving:
                try:
                    with self._raising:
                        self._living.discard(process)
                    is_leaving = True
                except _errors.ActorExit:
                    pass
            loop = sys.modules.get("rebeam._loop")
            if loop is not None:
                # A crash may have hit the loop itself.
                with contextlib.suppress(Exception, _errors.ActorExit):
                    loop.close()
            _runtime.identities.pop(threading.get_ident(), None)
            _rebeam.detach_in_process()
            self._node.ended(process)

    def _unwind(self, process: int) -> None:
        """Raises `ActorExit` in the thread of an actor, wherever that is."""
        if process == self._own:
            self._node.ended(process)
        thread = self._threads.get(process)
        if thread is None or thread.ident is None:
            return
        with _runtime.no_exit, self._raising:
            if process in self._living:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(_errors.ActorExit)
                )


def _signal(signal: int | str) -> int:
    if isinstance(signal, str) and signal not in signals.Signals.__members__:
        raise ValueError(f"there is no signal `{signal}`; write a name such as `SIGSEGV`")
    return signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)


def _copy_of(tree: _spec.Supervisor) -> _spec.Supervisor:
    """The tree as a child that is not started again: that it gave up is to be seen."""
    import copy

    under = copy.copy(tree)
    under.restart, under.id = "temporary", tree.name or "tree"
    return under


@contextlib.contextmanager
def _threads_of_actors() -> Iterator[None]:
    """Has a thread that an actor starts speak as that actor, as it does where the actor is a process."""
    start = threading.Thread.start

    def start_of_actor(thread: threading.Thread) -> None:
        owner = _rebeam.thread_owner()
        if owner is not None:
            identity, run = _runtime.identities.get(threading.get_ident()), thread.run
            thread.run = lambda: _run_of_actor(owner, identity, run)  # type: ignore[method-assign]
        # Until it runs, CPython takes its state for that of the thread that starts it: an exit might be raised there.
        with _runtime.no_exit:
            start(thread)

    threading.Thread.start = start_of_actor  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]


def _run_of_actor(owner: _rebeam.ThreadOwner, identity: _runtime.Identity | None, run: Callable[[], None]) -> None:
    if identity is None:
        return run()
    number = threading.get_ident()
    # Before it joins, so that no node is over that leaves it there.
    _runtime.identities[number] = identity
    if not _rebeam.join_in_process(owner):
        _runtime.identities.pop(number, None)
        return run()
    try:
        run()
    except _errors.ActorExit:
        # The actor is no more; as a process it would have taken its threads along.
        pass
    finally:
        _runtime.identities.pop(number, None)
        _rebeam.part_in_process()
    return None


@contextlib.contextmanager
def running(tree: _spec.Supervisor, *, seed: int | None = None) -> Iterator[Node]:
    """Runs a tree in the process of the test; the calling thread is the actor `test` meanwhile.

    Args:
        tree: what `rebeam up` would be pointed at. Its path in the node is `tree`, if it has no name.
        seed: has messages of different actors overtake each other, and acknowledgements come late, as they may between
            processes; each seed tries other orders. Default: None, they are passed on as they come.

    Raises:
        TreeFailedError: it did not come up.
        SpecError: it makes no sense.
    """
    if _runtime.identities:
        raise RuntimeError("a node runs in this process already")
    from rebeam import _loop

    _see_to_forks()

    _rebeam.set_context_variable(_loop._in_hand)
    node = Node(tree, seed)
    with _threads_of_actors():
        node._start()
        try:
            yield node
        finally:
            node._close()


_sees_to_forks = False


def _see_to_forks() -> None:
    """A process that is forked while a node runs has no part in that."""
    global _sees_to_forks
    if not _sees_to_forks:
        _sees_to_forks = True
        os.register_at_fork(after_in_child=lambda: _rebeam.detach_after_fork() if _runtime.identities else None)


class ProcessNode:
    """A node as `rebeam up` runs it, seen from outside; made by `processes`. Its time is real."""

    def __init__(self, target: str, directory: str) -> None:
        self._directory = directory
        self._runtime = tempfile.mkdtemp(prefix="rb-")
        self._command = [_client.program(), "--project", directory, "--runtime-dir", self._runtime]
        self._process = subprocess.Popen(
            [*self._command, "up", "--no-reload", target],
            cwd=directory,
            env={**os.environ, "REBEAM_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        """What the node has printed."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._is_up = threading.Event()
        self._reader.start()

    def ref(self, actor: type[Any], name: str) -> ActorRef[Any]:
        """A handle on an actor, as of `rebeam.connect`: plain data in and out."""
        return self._outside.ref(actor, name)

    def actors(self) -> list[ActorInfo]:
        """The actors of the node."""
        return self._outside.actors()

    def idle(self, timeout: float = _PATIENCE) -> None:
        """Waits until all actors run, and none has mail or a message in hand."""
        deadline = time.monotonic() + timeout
        while True:
            actors = json.loads(self._run("ps", "--json"))
            busy = [one["id"] for one in actors if one["state"] != "running" or one["waiting"] or one["busy"]]
            if not busy:
                return
            if time.monotonic() >= deadline:
                raise RuntimeError(f"the node did not come to rest within {timeout} s: busy: {', '.join(busy)}")
            time.sleep(0.005)

    def crash(self, actor: ActorRef[Any] | str, signal: int | str = signals.SIGKILL) -> None:
        """Sends a signal to the process of an actor, and waits until its end is noticed."""
        actor = actor if isinstance(actor, str) else str(actor._address)
        before = self._entry(actor)
        os.kill(before["os_pid"], _signal(signal))
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            now = self._entry(actor)
            if now["os_pid"] != before["os_pid"]:
                return
            time.sleep(0.002)
        raise RuntimeError(f"`{actor}` lives on")

    def _entry(self, actor: str) -> dict[str, Any]:
        for one in json.loads(self._run("ps", "--json")):
            if actor in (one["name"], one["id"]):
                return dict(one)
        raise _errors.NoProc(f"there is no actor `{actor}`")

    def _run(self, *args: str) -> str:
        return subprocess.run([*self._command, *args], check=True, capture_output=True, text=True).stdout

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line.rstrip("\n"))
            if " up with " in line:
                self._is_up.set()
        self._is_up.set()

    def _start(self) -> None:
        self._is_up.wait(60.0)
        if self._process.poll() is not None or not any(" up with " in line for line in self.output):
            self._close()
            raise TreeFailedError("\n".join(self.output))
        node = _rebeam.node_directory(os.fsencode(os.path.realpath(self._directory)))
        self._outside = _client.Node(os.path.join(self._runtime, node), is_chosen=True)

    def _close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(30.0)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(_PATIENCE)
            shutil.rmtree(self._runtime, ignore_errors=True)


@contextlib.contextmanager
def processes(target: str, directory: str | os.PathLike[str] = ".") -> Iterator[ProcessNode]:
    """Runs a node with processes, as `rebeam up TARGET` in a directory would.

    Raises:
        TreeFailedError: it did not come up; the text is what it printed.
    """
    node = ProcessNode(target, os.fspath(directory))
    node._start()
    try:
        yield node
    finally:
        node._close()
