#!/usr/bin/env python3
"""`make bench-peers`: the same work on other runtimes that isolate actors in processes, in an environment of their own.

Each peer runs in a process of its own, so that one that hangs or cannot be imported costs a line and no more. Prints a
table and writes `peers.json`. What it measures is what `app.py` does: calls between two actors, casts from one to
another, starting actors until they have answered, and the time from SIGKILL to the next answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MESSAGE = {"n": 1}
CALLS, CASTS, ACTORS = 2_000, 5_000, 10
PATIENCE = 10.0
"""Seconds that a killed actor has to answer again."""

Figures = dict[str, Any]


def percentiles(times: list[float]) -> Figures:
    times.sort()
    return {"call p50, µs": times[len(times) // 2] * 1e6, "call p99, µs": times[len(times) * 99 // 100] * 1e6}


class Plain:
    """What every peer's actor does."""

    def __init__(self) -> None:
        self.count = 0

    def echo(self, message: object) -> object:
        return message

    def note(self, message: object) -> None:
        self.count += 1

    def noted(self) -> int:
        return self.count

    def os_pid(self) -> int:
        return os.getpid()


def multiprocessing_peer() -> Figures:
    """A person's own loop over `Process` and `Pipe`, which restarts nothing."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")

    def start() -> tuple[Any, Any]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_pipe_loop, args=(theirs,))
        process.start()
        return process, ours

    process, pipe = start()
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        pipe.send(("echo", MESSAGE))
        pipe.recv()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(CASTS):
        pipe.send(("note", MESSAGE))
    pipe.send(("noted", None))
    pipe.recv()
    casts = CASTS / (time.perf_counter() - started)
    started = time.perf_counter()
    others = [start() for _ in range(ACTORS)]
    for _, other in others:
        other.send(("echo", MESSAGE))
        other.recv()
    each = (time.perf_counter() - started) / ACTORS * 1000
    for one, _ in [*others, (process, None)]:
        one.kill()
    return {**percentiles(times), "casts, /s": casts, "start of each, ms": each}


def _pipe_loop(pipe: Any) -> None:
    plain = Plain()
    while True:
        method, message = pipe.recv()
        match method:
            case "echo":
                pipe.send(plain.echo(message))
            case "note":
                plain.note(message)
            case "noted":
                pipe.send(plain.noted())


def ray_peer() -> Figures:
    import ray

    ray.init(include_dashboard=False, logging_level="ERROR", num_cpus=64)
    actor = ray.remote(max_restarts=-1)(Plain)

    @ray.remote(num_cpus=0)
    class Bench:
        def calls(self, echo: Any) -> list[float]:
            times = []
            for _ in range(CALLS):
                started = time.perf_counter()
                ray.get(echo.echo.remote(MESSAGE))
                times.append(time.perf_counter() - started)
            return times

        def casts(self, echo: Any) -> float:
            started = time.perf_counter()
            for _ in range(CASTS):
                echo.note.remote(MESSAGE)
            ray.get(echo.noted.remote())
            return CASTS / (time.perf_counter() - started)

    bench, echo = Bench.remote(), actor.remote()
    times, casts = ray.get(bench.calls.remote(echo)), ray.get(bench.casts.remote(echo))
    started = time.perf_counter()
    ray.get([one.os_pid.remote() for one in [actor.remote() for _ in range(ACTORS)]])
    each = (time.perf_counter() - started) / ACTORS * 1000
    back = killed(ray.get(echo.os_pid.remote()), lambda: ray.get(echo.os_pid.remote(), timeout=PATIENCE))
    return {**percentiles(times), "casts, /s": casts, "start of each, ms": each, "SIGKILL to answering, ms": back}


class DaskBench:
    def calls(self, echo: Any) -> list[float]:
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            echo.echo(MESSAGE).result()
            times.append(time.perf_counter() - started)
        return times

    def casts(self, echo: Any) -> float:
        started = time.perf_counter()
        for _ in range(CASTS):
            last = echo.note(MESSAGE)
        last.result()
        return CASTS / (time.perf_counter() - started)


def dask_peer() -> Figures:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    client = Client(cluster)
    workers = list(client.scheduler_info()["workers"])
    echo = client.submit(Plain, actor=True, workers=workers[0]).result()
    bench = client.submit(DaskBench, actor=True, workers=workers[1]).result()
    times, casts = bench.calls(echo).result(), bench.casts(echo).result()
    started = time.perf_counter()
    cluster.scale(2 + ACTORS)
    client.wait_for_workers(2 + ACTORS)
    each = (time.perf_counter() - started) / ACTORS * 1000
    back = killed(echo.os_pid().result(), lambda: echo.os_pid().result(timeout=1))
    return {**percentiles(times), "casts, /s": casts, "start of each, ms": each, "SIGKILL to answering, ms": back}


def xoscar_peer() -> Figures:
    import xoscar

    class Echo(xoscar.Actor):
        def __init__(self) -> None:
            self.count = 0

        async def echo(self, message: object) -> object:
            return message

        async def note(self, message: object) -> None:
            self.count += 1

        async def noted(self) -> int:
            return self.count

    class Bench(xoscar.Actor):
        async def calls(self, echo: Any) -> list[float]:
            times = []
            for _ in range(CALLS):
                started = time.perf_counter()
                await echo.echo(MESSAGE)
                times.append(time.perf_counter() - started)
            return times

        async def casts(self, echo: Any) -> float:
            started = time.perf_counter()
            for _ in range(CASTS):
                await echo.note.tell(MESSAGE)
            await echo.noted()
            return CASTS / (time.perf_counter() - started)

    globals().update(Echo=Echo, Bench=Bench)
    Echo.__qualname__, Bench.__qualname__ = "Echo", "Bench"

    async def run() -> Figures:
        started = time.perf_counter()
        pool = await xoscar.create_actor_pool("127.0.0.1", n_process=4)
        each = (time.perf_counter() - started) / 4 * 1000
        async with pool:
            addresses = list(pool.sub_processes) if hasattr(pool, "sub_processes") else []
            one, other = addresses[0], addresses[1]
            echo = await xoscar.create_actor(Echo, address=one)
            bench = await xoscar.create_actor(Bench, address=other)
            times, casts = await bench.calls(echo), await bench.casts(echo)
        return {**percentiles(times), "casts, /s": casts, "start of each, ms": each}

    return asyncio.run(run())


def thespian_peer() -> Figures:
    from thespian.actors import Actor, ActorSystem

    class Echo(Actor):
        count = 0

        def receiveMessage(self, message: Any, sender: Any) -> None:  # noqa: N802
            match message:
                case ("note", _):
                    self.count += 1
                case ("echo", content):
                    self.send(sender, content)
                case ("pid", _):
                    self.send(sender, os.getpid())

    globals()["Echo"] = Echo
    Echo.__qualname__ = "Echo"
    system = ActorSystem("multiprocTCPBase")
    try:
        echo = system.createActor(Echo)
        times = []
        for _ in range(CALLS // 4):
            started = time.perf_counter()
            system.ask(echo, ("echo", MESSAGE), 10)
            times.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(CASTS // 10):
            system.tell(echo, ("note", MESSAGE))
        system.ask(echo, ("echo", MESSAGE), 60)
        casts = CASTS / 10 / (time.perf_counter() - started)
        started = time.perf_counter()
        for one in [system.createActor(Echo) for _ in range(ACTORS)]:
            system.ask(one, ("echo", MESSAGE), 10)
        each = (time.perf_counter() - started) / ACTORS * 1000
        os_pid = system.ask(echo, ("pid", None), 10)
        back = killed(os_pid, lambda: system.ask(echo, ("pid", None), 1) or os_pid)
        return {**percentiles(times), "casts, /s": casts, "start of each, ms": each, "SIGKILL to answering, ms": back}
    finally:
        system.shutdown()


def killed(os_pid: int, ask: Any) -> float | None:
    """From SIGKILL to the first answer of a new process, in ms."""
    started = time.perf_counter()
    os.kill(os_pid, signal.SIGKILL)
    while time.perf_counter() - started < PATIENCE:
        try:
            if ask() != os_pid:
                return (time.perf_counter() - started) * 1000
        except Exception:
            time.sleep(0.001)
    return None


def rebeam_peer() -> Figures:
    """Ours, as `make bench` has built it."""
    rebeam, here = os.environ["REBEAM"], Path(__file__).parent
    environment = {**os.environ, "REBEAM_RUNTIME_DIR": tempfile.mkdtemp(), "IDLE": "0"}

    def run(*words: str) -> Any:
        ran = subprocess.run([rebeam, *words], cwd=here, env=environment, capture_output=True, text=True, check=True)
        return json.loads(ran.stdout) if ran.stdout.strip() else None

    def ask(method: str, *args: str) -> Any:
        return run("call", "--json", "--timeout", "100", "bench", method, *args)

    node = subprocess.Popen([rebeam, "up", "app.py"], cwd=here, env=environment, stderr=subprocess.PIPE, text=True)
    assert node.stderr is not None
    while "up with" not in node.stderr.readline():
        pass
    try:
        p50, p99 = ask("calls", str(CALLS))
        casts = ask("casts", str(CASTS))
        each, _ = ask("starts", str(ACTORS))
        back, _ = ask("kills", "1")
        figures = {"call p50, µs": p50, "call p99, µs": p99, "casts, /s": casts}
        return {**figures, "start of each, ms": each, "SIGKILL to answering, ms": back}
    finally:
        run("down")
        node.wait()


def erlang_peer() -> Figures:
    """Two nodes over loopback, if Erlang is installed; `peers.erl` says what they do."""
    with tempfile.TemporaryDirectory() as compiled:
        source = Path(__file__).with_name("peers.erl")
        subprocess.run(["erlc", "-o", compiled, source], check=True)
        command = ["erl", "-noshell", "-pa", compiled, "-s", "peers", "main"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.strip().splitlines()[-1])


PEERS = {
    "rebeam": rebeam_peer,
    "multiprocessing": multiprocessing_peer,
    "ray": ray_peer,
    "dask.distributed": dask_peer,
    "xoscar": xoscar_peer,
    "thespian": thespian_peer,
    "erlang, two nodes": erlang_peer,
}


def main() -> None:
    if len(sys.argv) == 2:
        print(json.dumps(PEERS[sys.argv[1]]()))
        return
    results: dict[str, Any] = {}
    for name in PEERS:
        runs = []
        for _ in range(3):
            ran = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, timeout=300)
            if ran.returncode != 0:
                lines = ran.stderr.strip().splitlines() or ["no reason given"]
                print(f"{name}: failed: {lines[-1]}")
                break
            runs.append(json.loads(ran.stdout.strip().splitlines()[-1]))
        if not runs:
            continue
        median = {
            key: statistics.median(values) if (values := [run[key] for run in runs if run[key] is not None]) else None
            for key in runs[0]
        }
        results[name] = median
        shown = ", ".join(f"{key} {'never' if value is None else f'{value:,.1f}'}" for key, value in median.items())
        print(f"{name}: {shown}")
    Path(__file__).with_name("peers.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
