"""What reading and writing a table costs, beside a dictionary, `multiprocessing.Manager().dict()`, py-lmdb, Redis over
loopback, Erlang's ETS, and a call. Of those only what is installed.

Prints JSON: for each row its values and those of its floor. Run by `make bench`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

REBEAM = os.path.abspath(sys.argv[1])
PYTHON = sys.executable
VALUE = b"x" * 100
RUNS = 5

APP = '''
import json, pickle, random, time
import rebeam
from rebeam import Actor, Supervisor, Table, child

VALUE = b"x" * 100

def timed(times, function):
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times * 1e6

class Array:
    """As one of numpy's: its bytes are no part of its pickle."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Array, (pickle.PickleBuffer(self.data),)

class Echo(Actor):
    def echo(self, value):
        return value

class Writer(Actor):
    def flood(self, seconds):
        table, end, count = rebeam.table("flooded"), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            table[count % 1000] = VALUE
            count += 1
        return count

class Reader(Actor):
    def init(self):
        self.hot = rebeam.table("hot")

    def fill(self):
        self.hot["a"] = VALUE

    def read(self):
        return timed(100_000, lambda: self.hot["a"])

    def write(self):
        return timed(3_000, lambda: self.hot.insert("b", VALUE))

    def call(self):
        echo = rebeam.ref(Echo, "echo")
        return timed(3_000, lambda: echo.call(Echo.echo, VALUE))

    def array(self):
        """Microseconds of a look at 8 MB and of their copy."""
        self.hot["array"] = Array(bytearray(8_000_000))
        held = self.hot["array"]
        return timed(1_000, lambda: self.hot["array"]), timed(50, lambda: bytes(held.data))

    def put_many(self, shuffled):
        keys = [f"key-{place:07d}" for place in range(250_000)]
        if shuffled:
            random.Random(1).shuffle(keys)
        table = rebeam.table("many")
        table.clear()
        began = time.perf_counter()
        table.put_many((key, VALUE) for key in keys)
        return len(keys) / (time.perf_counter() - began)

    def calls_beside(self, is_busy):
        echo, busy = rebeam.ref(Echo, "echo"), rebeam.ref(Writer, "writer")
        flood = busy.options(timeout=30).request(Writer.flood, 2.0) if is_busy else None
        times, end = [], time.monotonic() + 1.5
        while time.monotonic() < end:
            began = time.perf_counter()
            echo.call(Echo.echo, VALUE)
            times.append((time.perf_counter() - began) * 1e6)
        flood and flood.result(30)
        return sorted(times)[len(times) * 99 // 100]

    def own(self):
        """Private memory and page tables, in KiB."""
        fields = {}
        for path in ("/proc/self/smaps_rollup", "/proc/self/status"):
            for line in open(path):
                name, _, rest = line.partition(":")
                fields[name] = rest.split()
        return sum(int(fields[name][0]) for name in ("Private_Clean", "Private_Dirty", "VmPTE"))

    def fill_million(self):
        rebeam.table("many").clear()
        keys = list(range(1_000_000))
        for start in range(0, len(keys), 100_000):
            rebeam.table("many").put_many((f"key-{key:07d}", VALUE) for key in keys[start : start + 100_000])

    def look(self):
        table = rebeam.table("many")
        for key in range(0, 1_000_000, 50):
            table[f"key-{key:07d}"]

tree = Supervisor([
    Table("hot"), Table("many"), Table("flooded"), child(Echo, name="echo"), child(Writer, name="writer"),
    *(child(Reader, name=f"reader-{place}", id=f"reader-{place}") for place in range(100)),
])
'''


def timed(times: int, function: Any) -> float:
    """Microseconds that one call takes."""
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times * 1e6


def rivals() -> dict[str, list[float]]:
    """Reads of 100 bytes, in microseconds, and of a manager's dictionary writes, too."""
    plain = {"a": VALUE}
    found = {"dict": [timed(100_000, lambda: plain["a"]) for _ in range(RUNS)]}
    with multiprocessing.Manager() as manager:
        shared = manager.dict({"a": VALUE})
        found["manager"] = [timed(2_000, lambda: shared["a"]) for _ in range(RUNS)]
    try:
        import lmdb
    except ImportError:
        return found
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        env = lmdb.open(directory, map_size=1 << 30, sync=False, metasync=False)
        with env.begin(write=True) as writing:
            writing.put(b"a", pickle.dumps(VALUE, 5))

        def read() -> Any:
            # It keeps ended transactions, and renews them.
            with env.begin() as reading:
                return pickle.loads(reading.get(b"a"))

        found["py-lmdb"] = [timed(100_000, read) for _ in range(RUNS)]
    return found


def redis_reads() -> list[float]:
    """Reads of 100 bytes from a Redis over loopback, by its protocol and nothing else, in microseconds."""
    server = shutil.which("redis-server")
    if server is None:
        return []
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen([server, *options], cwd=directory, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 10
            while True:
                try:
                    connection = socket.create_connection(("127.0.0.1", port))
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pickled = pickle.dumps(VALUE, 5)
                connection.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s\r\n" % (len(pickled), pickled))
                connection.recv(100)

                def read() -> Any:
                    connection.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n")
                    return pickle.loads(connection.recv(4096).split(b"\r\n", 1)[1][:-2])

                return [timed(5_000, read) for _ in range(RUNS)]
        finally:
            process.terminate()
            process.wait()


# Compiled, since what `-eval` is given is interpreted.
ETS = """
-module(ets_reads).
-export([main/0]).
main() ->
    T = ets:new(t, [public, {read_concurrency, true}]),
    ets:insert(T, {a, binary:copy(<<"x">>, 100)}),
    [io:format("~p~n", [element(1, timer:tc(fun() -> reads(T, 100000) end)) / 100000]) || _ <- lists:seq(1, 5)],
    halt().
reads(_, 0) -> ok;
reads(T, N) -> [{a, _}] = ets:lookup(T, a), reads(T, N - 1).
"""


def ets_reads() -> list[float]:
    """The same from an ETS table in Erlang, where a reader is in the process of the table."""
    if shutil.which("erlc") is None or shutil.which("erl") is None:
        return []
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/ets_reads.erl", "w") as file:
            file.write(ETS)
        subprocess.run(["erlc", "ets_reads.erl"], cwd=directory, check=True)
        command = ["erl", "-noshell", "-s", "ets_reads", "main"]
        output = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True).stdout
        return [float(line) for line in output.split()]


def main() -> None:
    """Measures, and prints."""
    rows: list[dict[str, Any]] = []

    def row(name: str, unit: str, values: list[float], floor: list[float] | None = None) -> None:
        rows.append({"name": name, "unit": unit, "values": values, "floor": floor or []})
        print(f"{name}: {statistics.median(values):.2f} {unit}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/app.py", "w") as file:
            file.write(APP)
        environment = {**os.environ, "REBEAM_RUNTIME_DIR": directory, "REBEAM_PYTHON": PYTHON}

        def rebeam(*args: str) -> Any:
            result = subprocess.run(
                [REBEAM, *args], cwd=directory, env=environment, capture_output=True, text=True, check=True
            )
            return json.loads(result.stdout) if result.stdout.strip() else None

        def ask(method: str, *args: Any, of: str = "reader-0") -> Any:
            return rebeam("call", "--json", "--timeout", "120", of, method, *map(json.dumps, args))

        node = subprocess.Popen([REBEAM, "run", "app.py"], cwd=directory, env=environment, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                try:
                    rebeam("health", "--json")
                    break
                except subprocess.CalledProcessError:
                    time.sleep(0.1)
            ask("fill")
            others = rivals()
            reads = [ask("read") for _ in range(RUNS)]
            row("read of 100 bytes, beside a dict", "µs", reads, others["dict"])
            row("… beside Manager().dict()", "µs", reads, others["manager"])
            for rival, floor in (("Redis over loopback", redis_reads()), ("ETS in Erlang", ets_reads())):
                if floor:
                    row(f"… beside {rival}", "µs", reads, floor)
            if "py-lmdb" in others:
                row("… beside py-lmdb, renewed and unpickled", "µs", reads, others["py-lmdb"])
            writing = subprocess.Popen(
                [REBEAM, "call", "--timeout", "60", "writer", "flood", "12"],
                cwd=directory,
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            row("read beside a writer at full speed", "µs", [ask("read") for _ in range(RUNS)], reads)
            writing.wait()
            row("write, beside a call", "µs", [ask("write") for _ in range(RUNS)], [ask("call") for _ in range(RUNS)])
            arrays = [ask("array") for _ in range(RUNS)]
            row("read of an array of 8 MB", "µs", [read for read, _ in arrays], [copy for _, copy in arrays])
            row("put_many, random keys", "/s", [ask("put_many", True) for _ in range(3)])
            row("put_many, ascending keys", "/s", [ask("put_many", False) for _ in range(3)])
            idle = [ask("calls_beside", False) for _ in range(3)]
            row("call p99 beside a writer at full speed", "µs", [ask("calls_beside", True) for _ in range(3)], idle)
            ask("fill_million")
            ask("look", of="reader-1")
            before = [ask("own", of=f"reader-{place}") for place in range(2, 5)]
            for place in range(2, 5):
                ask("look", of=f"reader-{place}")
            after = [ask("own", of=f"reader-{place}") for place in range(2, 5)]
            row("own memory of who has looked into a million rows", "KiB", after, before)
            row("a million rows of 100 bytes, ascending", "MiB", [ask_bytes(rebeam)])
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait()
    print(json.dumps(rows))


def ask_bytes(rebeam: Any) -> float:
    """What the rows take, by the node's own count."""
    tables = {table["name"]: table for table in rebeam("table", "ls", "--json")}
    return float(tables["many"]["bytes"]) / (1 << 20)


if __name__ == "__main__":
    random.seed(1)
    main()
