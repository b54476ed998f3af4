"""What `make bench` runs: an echo, somebody who measures it, and as many idle actors as asked for."""

from __future__ import annotations

import os
import pickle
import signal
import time

import rebeam
from rebeam import Actor, Supervisor, child

MESSAGE = {"n": 1}


class Echo(Actor):
    """Answers, counts, says who it is."""

    def init(self) -> None:
        self.count = 0

    def echo(self, message: object) -> object:
        return message

    def note(self, message: object) -> None:
        self.count += 1

    def noted(self) -> int:
        return self.count

    def os_pid(self) -> int:
        return os.getpid()

    def look(self) -> bool:
        return rebeam.whereis("echo") is not None


class Big:
    """Bytes that pickle leaves out of band."""

    def __init__(self, data: object) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: object) -> tuple[type[Big], tuple[pickle.PickleBuffer]]:
        return Big, (pickle.PickleBuffer(self.data),)  # type: ignore[arg-type]


class Slow(Actor):
    """Takes a millisecond for each message."""

    def note(self, message: object) -> None:
        time.sleep(0.001)


class Flooder(Actor):
    """Sends to the slow one as fast as it is let."""

    def flood(self, seconds: float) -> None:
        slow = rebeam.ref(Slow, "slow").options(timeout=None)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            slow.cast(Slow.note, MESSAGE)


class Bench(Actor):
    """Measures from inside an actor."""

    def init(self) -> None:
        self.echo = rebeam.ref(Echo, "echo").options(timeout=60)

    def calls(self, count: int) -> tuple[float, float]:
        times = []
        for _ in range(count):
            started = time.perf_counter_ns()
            self.echo.call(Echo.echo, MESSAGE)
            times.append(time.perf_counter_ns() - started)
        times.sort()
        return times[count // 2] / 1000, times[count * 99 // 100] / 1000

    def calls_within(self, seconds: float) -> float:
        """Calls per second, for so many seconds."""
        count = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.echo.call(Echo.echo, MESSAGE)
            count += 1
        return count / seconds

    def casts(self, count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            self.echo.cast(Echo.note, MESSAGE)
        self.echo.call(Echo.noted)
        return count / (time.perf_counter() - started)

    def buffers(self, size: int) -> tuple[float, float]:
        """Bytes per ns that a cast of so many takes its sender, and a copy of them in memory that was used before."""
        data, copy = bytearray(size), bytearray(size)
        sent, copied = [], []
        for _ in range(8):
            started = time.perf_counter_ns()
            self.echo.cast(Echo.note, Big(data))
            sent.append(time.perf_counter_ns() - started)
            # The arena comes back once nobody looks into it.
            self.echo.call(Echo.noted)
            started = time.perf_counter_ns()
            memoryview(copy)[:] = data
            copied.append(time.perf_counter_ns() - started)
        return size / sorted(sent[2:])[3], size / sorted(copied[2:])[3]

    def shared(self, size: int) -> float:
        """The median round trip of a buffer that lies in shared memory already, in µs."""
        big = rebeam.share(Big(bytearray(size)))
        times = []
        for _ in range(200):
            started = time.perf_counter_ns()
            self.echo.call(Echo.note, big)
            times.append(time.perf_counter_ns() - started)
        return sorted(times)[100] / 1000

    def lookups(self, count: int) -> tuple[float, float]:
        """The median of a look-up of a name, and of one in a dictionary, in ns."""
        names = dict(rebeam.registry)
        ours, theirs = [], []
        for _ in range(count):
            started = time.perf_counter_ns()
            for _ in range(100):
                rebeam.whereis("echo")
            ours.append((time.perf_counter_ns() - started) / 100)
            started = time.perf_counter_ns()
            for _ in range(100):
                names.get("echo")
            theirs.append((time.perf_counter_ns() - started) / 100)
        return sorted(ours)[count // 2], sorted(theirs)[count // 2]

    def look_all(self) -> int:
        """Has every idle actor look at the names, so that each has a replica of them."""
        children = rebeam.supervisor("root").which_children()
        idle = [child.ref for child in children if child.id.startswith("idle")]
        return sum(ref.call(Echo.look) for ref in idle)

    def changes(self, count: int) -> float:
        """The median of a name that is registered, or given back, in µs."""
        times = []
        for _ in range(count):
            for change in (rebeam.register, rebeam.unregister):
                started = time.perf_counter_ns()
                change("changing")
                times.append(time.perf_counter_ns() - started)
        return sorted(times)[count] / 1000

    def fill(self, count: int) -> int:
        for number in range(count):
            rebeam.register(f"name-{number}")
        return len(rebeam.registry)

    def starts(self, count: int) -> tuple[float, float]:
        """From asking for an actor to its first answer, in ms: the median, and the worst."""
        times = []
        for _ in range(count):
            started = time.perf_counter()
            ref = rebeam.start(Echo, restart="temporary")
            ref.call(Echo.noted)
            times.append((time.perf_counter() - started) * 1000)
            rebeam.kill(ref)
        times.sort()
        return times[count // 2], times[-1]

    def kills(self, count: int) -> tuple[float, float]:
        """From the kill to the first answer by name, in ms: the median, and the worst."""
        times = sorted(self.killed_to_answer() for _ in range(count))
        return times[count // 2], times[-1]

    def pairs(self, count: int) -> float:
        """Casts per second of all pairs together."""
        refs = [rebeam.ref(Pair, f"sender-{number}").options(timeout=60) for number in range(PAIRS)]
        started = time.perf_counter()
        for pending in [ref.request(Pair.send, number, count) for number, ref in enumerate(refs)]:
            pending.result(60)
        return PAIRS * count / (time.perf_counter() - started)

    def pile_up(self, count: int) -> int:
        """Has so many messages of 1 KiB wait for somebody who takes none."""
        rebeam.suspend("heap")
        heap = rebeam.ref(Echo, "heap")
        message = os.urandom(1024)
        for _ in range(count):
            heap.cast(Echo.note, message)
        return count

    def killed_to_answer(self) -> float:
        os_pid = self.echo.call(Echo.os_pid)
        started = time.perf_counter()
        os.kill(os_pid, signal.SIGKILL)
        while True:
            try:
                if self.echo.call(Echo.os_pid) != os_pid:
                    return (time.perf_counter() - started) * 1000
            except rebeam.ActorDied:
                continue


class Pair(Actor):
    """Sends to its own receiver."""

    def send(self, number: int, count: int) -> int:
        echo = rebeam.ref(Echo, f"receiver-{number}").options(timeout=60)
        for _ in range(count):
            echo.cast(Echo.note, MESSAGE)
        return echo.call(Echo.noted)


PAIRS = int(os.environ.get("PAIRS", "0"))
cpus = [int(cpu) for cpu in os.environ.get("ACTOR_CPUS", "").split(",") if cpu]
pairs = [child(Pair, name=f"sender-{number}") for number in range(PAIRS)]
pairs += [child(Echo, name=f"receiver-{number}") for number in range(PAIRS)]
idle = [child(Echo, id=f"idle-{n}") for n in range(int(os.environ.get("IDLE", "0")))]
tree = Supervisor(
    [
        # Killed again and again, which is to be measured without the pauses that a crash loop has.
        child(Echo, name="echo", cpus=cpus, backoff=None),
        child(Bench, name="bench", cpus=cpus),
        child(Echo, name="heap", max_messages_waiting=None, max_bytes_waiting=None),
        *pairs,
        child(Slow, name="slow"),
        child(Flooder, name="flooder"),
        *idle,
    ],
    max_restarts=1000,
)
