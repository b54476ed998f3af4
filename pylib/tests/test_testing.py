"""The tools for tests, tested: real supervision in one process and in virtual time, and with processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import rebeam
from rebeam import Actor, Backoff, DynamicSupervisor, Supervisor, child
from rebeam.testing import TreeFailedError, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rebeam.testing import Node, ProcessNode

pytest_plugins = ["rebeam._pytest"]


class Counter(Actor):
    def init(self, start: int = 0) -> None:
        self.n = start
        self.seen: list[Any] = []

    def incr(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def same(self, value: list[int]) -> list[int]:
        value.append(1)
        return value

    def note(self, value: Any) -> None:
        self.seen.append(value)

    def take(self) -> list[Any]:
        return self.seen

    def handle_info(self, message: Any) -> None:
        self.seen.append(message)

    def fail(self) -> None:
        raise ValueError("told to fail")

    def ask(self, name: str) -> int:
        return rebeam.ref(Counter, name).call(Counter.incr)

    def ask_back(self, name: str) -> int:
        return rebeam.ref(Counter, name).call(Counter.ask, rebeam.me().name or "")

    def block(self) -> None:
        rebeam.receive(lambda message: message == "go")

    async def arrive(self, name: str) -> int:
        return await rebeam.ref(Counter, name).acall(Counter.incr)


def counters(*names: str, **options: Any) -> Supervisor:
    return Supervisor([child(Counter, name=name, **options) for name in names])


def test_calls_are_real_and_messages_are_copies() -> None:
    with running(counters("a", "b")) as node:
        a = rebeam.ref(Counter, "a")
        assert [a.call(Counter.incr), a.call(Counter.incr, 5)] == [1, 6]
        value = [0]
        assert a.call(Counter.same, value) == [0, 1]
        assert value == [0], "it was pickled"
        assert a.call(Counter.ask, "b") == 1
        assert a.call(Counter.arrive, "b") == 2
        a.cast(Counter.note, "x")
        node.idle()
        assert a.call(Counter.take) == ["x"]
        with pytest.raises(rebeam.Unpicklable):
            a.call(Counter.note, threading.Lock())
        with pytest.raises(rebeam.NoProc):
            rebeam.ref(Counter, "c").call(Counter.incr)
        with pytest.raises(rebeam.DeadlockError) as error:
            a.call(Counter.ask_back, "b")
        assert error.value.cycle[0] == "b.call(Counter.incr)"
    assert threading.active_count() == 1


def test_a_timeout_may_be_longer_than_any_clock_counts() -> None:
    with running(counters("a")):
        a = rebeam.ref(Counter, "a")
        for timeout in (float("inf"), 1e300, 1e15):
            assert a.options(timeout=timeout).call(Counter.incr, 0) == 0
        with pytest.raises(ValueError, match="timeout=-1: it must be 0 seconds or more"):
            a.options(timeout=-1).call(Counter.incr)


def test_a_tree_takes_less_than_a_tenth_of_a_second_each() -> None:
    # Not a limit on one: a machine may be busy. A hundred of them would take ten seconds.
    for number in range(100):
        with running(counters("a", "b", "c")):
            assert rebeam.ref(Counter, "c").call(Counter.incr, number) == number
    assert threading.active_count() == 1
    assert len(os.listdir("/proc/self/fd")) < 60


def test_a_crash_is_one_and_mail_survives_it() -> None:
    with running(counters("a")) as node:
        a = rebeam.ref(Counter, "a")
        a.call(Counter.incr)
        monitor = rebeam.monitor(a)
        node.crash(a, signal.SIGSEGV)
        down = rebeam.receive(rebeam.Down)
        assert (down.monitor, str(down.reason)) == (monitor, "signal(SIGSEGV)")
        assert a.call(Counter.incr) == 1
        assert [str(death.reason) for death in node.deaths] == ["signal(SIGSEGV)"]
        pending = a.request(Counter.block)
        a.cast(Counter.note, "waits")
        node.idle()
        node.crash("a")
        with pytest.raises(rebeam.ActorDied) as error:
            pending.result()
        assert error.value.certificate.in_hand[0].method == "block"
        assert a.call(Counter.take) == ["waits"]
        with pytest.raises(ValueError, match="told to fail"):
            a.call(Counter.fail)
        assert a.call(Counter.incr) == 1
        with pytest.raises(rebeam.NoProc):
            node.crash("nobody")


def test_time_passes_when_it_is_told_to() -> None:
    with running(counters("a", "b")) as node:
        a = rebeam.ref(Counter, "a")
        rebeam.send_after(60.0, a, "later")
        rebeam.send_every(25.0, a, "tick")
        began = time.monotonic()
        node.advance(59.9)
        assert a.call(Counter.take) == ["tick", "tick"]
        node.advance(0.2)
        assert a.call(Counter.take) == ["tick", "tick", "later"]
        assert round(node.now(), 3) == 60.1
        # A call's deadline is of that time, too, and says what the callee does.
        a.cast(Counter.block)
        pending = a.options(timeout=3600).request(Counter.incr)
        node.advance(3599)
        assert not pending.done()
        node.advance(2)
        with pytest.raises(rebeam.CallTimeout, match=r"busy .* in `block`"):
            pending.result()
        assert time.monotonic() - began < 30


def test_backoff_and_restart_limits_follow_that_time() -> None:
    backoff = Backoff(initial=10.0, factor=2.0, cap=100.0, jitter=0.0)
    tree = Supervisor([child(Counter, name="a", backoff=backoff)], max_restarts=3, max_seconds=1000)
    with running(tree) as node:
        for pause in (10.0, 20.0, 40.0):
            node.crash("a")
            node.advance(pause - 0.1)
            assert rebeam.whereis("a") is None
            node.advance(0.2)
            assert rebeam.whereis("a") is not None
        monitor = rebeam.monitor("a")
        node.crash("a")
        assert rebeam.receive(rebeam.Down).monitor == monitor
        node.advance(1000)
        assert rebeam.whereis("a") is None, "its supervisor gave up"


def test_a_message_can_get_lost() -> None:
    with running(counters("a")) as node:
        a = rebeam.ref(Counter, "a")
        node.drop_next("a", 2)
        for number in range(4):
            a.cast(Counter.note, number)
        assert a.call(Counter.take) == [2, 3]
        node.drop_next(a)
        pending = a.options(timeout=5).request(Counter.incr)
        node.advance(6)
        with pytest.raises(rebeam.CallTimeout):
            pending.result()


def test_dead_letters_links_and_spawned_actors() -> None:
    with running(Supervisor([DynamicSupervisor(name="dyn"), child(Counter, name="a")])) as node:
        rebeam.ref(Counter, "nobody").cast(Counter.note, 1)
        node.idle()
        assert [(letter.to, letter.cause) for letter in node.dead_letters] == [("nobody", "nobody")]
        started = rebeam.supervisor("dyn").start_child(child(Counter, 7))
        assert started.ref.call(Counter.incr) == 8
        ref = rebeam.spawn(Counter, 3)
        assert ref.call(Counter.incr) == 4
        rebeam.trap_exits()
        rebeam.link(ref)
        rebeam.exit(ref, "enough")
        assert str(rebeam.receive(rebeam.Exit).reason) == "enough"


def test_a_tree_that_does_not_come_up_says_why() -> None:
    class Broken(Actor):
        pass

    with pytest.raises(rebeam.SpecError), running(Supervisor([child(Broken), child(Broken)])):
        pass
    with (
        pytest.raises(TreeFailedError, match=r"`bad` did not start: ValueError: no"),
        running(Supervisor([child(Bad, name="bad")])),
    ):
        pass
    assert threading.active_count() == 1


class Bad(Actor):
    def init(self) -> None:
        raise ValueError("no")


def test_an_actor_that_does_not_end_is_ended(rebeam_running: Callable[[Supervisor], Node]) -> None:
    node = rebeam_running(counters("a"))
    rebeam.ref(Counter, "a").cast(Counter.block)
    node.idle()


APP = """
import os
import rebeam
from rebeam import Actor, Supervisor, child

class Echo(Actor):
    def echo(self, value):
        return value
    def segfault(self):
        import ctypes
        ctypes.string_at(0)

tree = Supervisor([child(Echo, name="echo")])
"""


def test_a_node_with_processes(rebeam_processes: Callable[..., ProcessNode], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    node = rebeam_processes("app:tree", tmp_path)
    echo = node.ref(Actor, "echo")
    assert echo.call.echo([1, {"a": 2}]) == [1, {"a": 2}]
    node.crash("echo", signal.SIGSEGV)
    assert echo.call.echo("back") == "back"
    node.idle()
    assert [one.restarts for one in node.actors()] == [1]
    assert any("signal(SIGSEGV)" in line for line in node.output)
    assert len(_processes_in(tmp_path)) >= 3, "the supervisor, the zygote, the actor"
    node._close()
    assert _processes_in(tmp_path) == [], "no process is left"


def _processes_in(directory: Path) -> list[str]:
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process}/cwd") == str(directory):
                found.append(process)
    return found


def test_a_node_with_processes_that_does_not_start_says_why(
    rebeam_processes: Callable[..., ProcessNode], tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("tree = 7\n")
    with pytest.raises(TreeFailedError, match=r"not a `rebeam.Supervisor`"):
        rebeam_processes("app:tree", tmp_path)


rooms = rebeam.Registry("rooms")


def test_names_registries_and_groups_are_the_same_in_one_process() -> None:
    tree = Supervisor([rooms, child(Counter, name="a"), DynamicSupervisor(name="dyn")])
    for _ in range(2):
        with running(tree) as node:
            assert rebeam.whereis("a") == rebeam.registry["a"] == rebeam.pid_of("a")
            rebeam.register("me")
            assert rebeam.whereis("me") == rebeam.me().pid
            rooms.register(("k", 1), {"value": 1})
            assert rooms["k", 1].value == {"value": 1}
            iterator = iter(rooms)
            rooms.register("other")
            with pytest.raises(RuntimeError, match="changed"):
                next(iterator)
            before = rebeam.whereis("a")
            watch = rebeam.watch("a")
            node.crash("a")
            node.idle()
            assert rebeam.whereis("a") not in (None, before)
            assert rebeam.receive(rebeam.Unregistered, 1.0).watch == watch.number
            group = rebeam.group(Counter, "g")
            group.join("a")
            group.broadcast(Counter.note, 1)
            assert group.pick().call(Counter.take) == [1]
            # Time passes by itself while everybody waits for it.
            with pytest.raises(TimeoutError):
                rebeam.wait_for("nobody", 20.0)
            late = rebeam.get_or_start("late", Counter, 5)
            assert late.call(Counter.incr) == 6
            assert rebeam.get_or_start("late", Counter, 50).call(Counter.incr) == 7
        with pytest.raises(rebeam.NotAnActor):
            rebeam.me()


class Web(Actor):
    """Answers by threads that ask another actor."""

    def by_thread(self) -> list[int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(counter().call(Counter.incr)))
        thread.start()
        thread.join()
        return found

    async def by_to_thread(self) -> int:
        return await asyncio.to_thread(counter().call, Counter.incr)

    def by_pool(self) -> list[int]:
        with ThreadPoolExecutor(3) as pool:
            return sorted(pool.map(lambda _: counter().call(Counter.incr), range(6)))

    def who(self) -> tuple[str, str]:
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(rebeam.me().path))
        thread.start()
        thread.join()
        return rebeam.me().path, found[0]

    def lingers(self) -> None:
        threading.Thread(target=self._linger, daemon=True).start()
        asked.wait()

    def _linger(self) -> None:
        asked.set()
        try:
            rebeam.ref(Web, "hangs").options(timeout=None).call(Web.hang)
        finally:
            lingering.set()

    def hang(self) -> None:
        rebeam.receive(timeout=None)

    def by_executor(self) -> list[int]:
        with rebeam.Executor(2) as pool:
            return list(pool.map(abs, range(-3, 0)))


asked = threading.Event()
lingering = threading.Event()


def counter() -> rebeam.ActorRef[Counter]:
    return rebeam.ref(Counter, "counter")


def with_threads() -> Supervisor:
    return Supervisor(
        [child(Counter, name="counter"), child(Web, name="web"), child(Web, name="hangs", shutdown="brutal_kill")]
    )


def test_a_crash_takes_the_name_of_a_signal() -> None:
    with running(with_threads()) as node:
        node.crash("counter", "SIGSEGV")
        assert str(node.deaths[0].reason) == "signal(SIGSEGV)"
        with pytest.raises(ValueError, match="SIGSEGV"):
            node.crash("counter", "SEGV")


def test_a_thread_speaks_as_the_actor_that_has_started_it() -> None:
    with running(with_threads()):
        web = rebeam.ref(Web, "web")
        assert web.call(Web.by_thread) == [1]
        assert web.call(Web.by_to_thread) == 2
        assert web.call(Web.by_pool) == [3, 4, 5, 6, 7, 8]
        assert web.call(Web.who) == ("web", "web")
        assert asyncio.run(asyncio.to_thread(counter().call, Counter.incr)) == 9
        with ThreadPoolExecutor(2) as pool:
            assert pool.submit(lambda: rebeam.me().path).result() == "test"


def test_an_executor_works_in_the_test_and_in_an_actor() -> None:
    with running(with_threads()):
        assert rebeam.ref(Web, "web").call(Web.by_executor) == [3, 2, 1]
        with rebeam.Executor(2) as pool:
            assert [future.result(10) for future in [pool.submit(abs, -n) for n in range(5)]] == [0, 1, 2, 3, 4]


def test_a_thread_that_outlives_its_actor_gets_no_answers_any_more() -> None:
    asked.clear()
    lingering.clear()
    with running(with_threads()) as node:
        rebeam.ref(Web, "web").call(Web.lingers)
        assert not lingering.wait(0.1)
        node.crash("web")
        assert lingering.wait(10)
        # Started again, it is another actor, whose threads speak for it.
        assert rebeam.ref(Web, "web").call(Web.by_thread) == [1]
    started = threading.Thread.start
    assert started.__module__ == "threading"


def test_a_thread_does_not_make_its_busy_actor_look_idle() -> None:
    with running(with_threads()) as node:
        asking = threading.Thread(target=lambda: rebeam.ref(Web, "web").call(Web.by_pool))
        asking.start()
        asking.join()
        node.idle()
        assert counter().call(Counter.incr) == 7


def test_threads_work_whatever_the_order_of_messages() -> None:
    for seed in range(20):
        with running(with_threads(), seed=seed):
            assert rebeam.ref(Web, "web").call(Web.by_pool) == [1, 2, 3, 4, 5, 6]


class Starts(Actor):
    def go(self) -> None:
        for _ in range(200):
            threading.Thread(target=int).start()


def test_an_actor_that_is_starting_a_thread_is_ended_as_any() -> None:
    for _ in range(10):
        with running(Supervisor([child(Starts, name="starts", backoff=None)], max_restarts=100)) as node:
            for _ in range(3):
                rebeam.ref(Starts, "starts").cast(Starts.go)
                node.crash("starts")
