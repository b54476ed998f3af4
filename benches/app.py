"""What `make bench` runs: an echo, somebody who measures it, and as many idle actors as asked for."""

import os
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

    def casts(self, count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            self.echo.cast(Echo.note, MESSAGE)
        self.echo.call(Echo.noted)
        return count / (time.perf_counter() - started)

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


idle = [child(Echo, id=f"idle-{n}") for n in range(int(os.environ.get("IDLE", "0")))]
tree = Supervisor([child(Echo, name="echo"), child(Bench, name="bench"), *idle], max_restarts=1000)
