"""What a foreign program costs behind its port: a JSON-RPC call beside the same exchange over a pipe from asyncio, starts
beside fork and exec, and the port's own memory.

Prints JSON: for each row its values and those of its floor. Run by `make bench`.
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
from typing import Any

REBEAM = os.path.abspath(sys.argv[1])
PYTHON = sys.executable
RUNS = 5
CALLS = 3_000
STARTS = 200
PARAMS = {"name": "tool", "arguments": {"text": "x" * 100}}

SERVER = """
import json, sys
for line in sys.stdin.buffer:
    message = json.loads(line)
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": message["params"]}) + "\\n")
    sys.stdout.flush()
"""

APP = f"""
import sys, time
import rebeam
from rebeam import Actor, DynamicSupervisor, ProgramRef, Supervisor, child, program

class Bench(Actor):
    def calls(self):
        ref = ProgramRef("server")
        began = time.perf_counter()
        for _ in range({CALLS}):
            ref.call("echo", {PARAMS!r})
        return (time.perf_counter() - began) / {CALLS} * 1e6

    async def acalls(self):
        ref = ProgramRef("server")
        began = time.perf_counter()
        for _ in range({CALLS}):
            await ref.acall("echo", {PARAMS!r})
        return (time.perf_counter() - began) / {CALLS} * 1e6

    def starts(self):
        began = time.perf_counter()
        started = [rebeam.start(program(["sleep", "1000"], restart="temporary")) for _ in range({STARTS})]
        took = (time.perf_counter() - began) / {STARTS} * 1e3
        for ref in started:
            rebeam.kill(ref)
        return took

tree = Supervisor([
    program([{PYTHON!r}, "-c", {SERVER!r}], name="server", stdio="jsonrpc"),
    program(["sleep", "1000"], name="other"),
    child(Bench, name="bench"),
])
"""


async def over_a_pipe() -> float:
    """Microseconds that an exchange with the same server takes from asyncio, which is what a client would use."""
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(PYTHON, "-c", SERVER, stdin=pipe, stdout=pipe)
    assert server.stdin is not None
    assert server.stdout is not None
    began = time.perf_counter()
    for number in range(CALLS):
        request = {"jsonrpc": "2.0", "id": number, "method": "echo", "params": PARAMS}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        await server.stdin.drain()
        assert json.loads(await server.stdout.readline())["result"] == PARAMS
    took = (time.perf_counter() - began) / CALLS * 1e6
    server.kill()
    await server.wait()
    return took


def forks() -> float:
    """Milliseconds that a fork and exec of the same program take."""
    began = time.perf_counter()
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(STARTS)]
    took = (time.perf_counter() - began) / STARTS * 1e3
    for one in started:
        one.kill()
        one.wait()
    return took


def own_memory(os_pid: int) -> float:
    """Memory that no other process has (another port has the same code), and page tables, in KiB."""
    fields = {}
    for path in (f"/proc/{os_pid}/smaps_rollup", f"/proc/{os_pid}/status"):
        with open(path) as file:
            for line in file:
                name, _, rest = line.partition(":")
                fields[name] = rest.split()
    return float(sum(int(fields[name][0]) for name in ("Private_Clean", "Private_Dirty", "VmPTE")))


def main() -> None:
    """Measures, and prints."""
    rows: list[dict[str, Any]] = []

    def row(name: str, unit: str, values: list[float], floor: list[float] | None = None) -> None:
        rows.append({"name": name, "unit": unit, "values": values, "floor": floor or []})
        shown = f" beside {statistics.median(floor):.2f}" if floor else ""
        print(f"{name}: {statistics.median(values):.2f} {unit}{shown}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/app.py", "w") as file:
            file.write(APP)
        environment = {**os.environ, "REBEAM_RUNTIME_DIR": directory, "REBEAM_PYTHON": PYTHON}

        def rebeam(*args: str) -> Any:
            command = [REBEAM, *args, "--json"]
            result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
            return json.loads(result.stdout)

        node = subprocess.Popen([REBEAM, "run", "app.py"], cwd=directory, env=environment, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end:
                try:
                    rebeam("health")
                    break
                except subprocess.CalledProcessError:
                    time.sleep(0.1)

            def ask(method: str) -> float:
                return float(rebeam("call", "--timeout", "120", "bench", method))

            pipes, calls, acalls = [], [], []
            for _ in range(RUNS):
                pipes.append(asyncio.run(over_a_pipe()))
                calls.append(ask("calls"))
                acalls.append(ask("acalls"))
            row("JSON-RPC call of a program, beside a pipe from asyncio", "µs", calls, pipes)
            row("… awaited", "µs", acalls, pipes)
            bare = [forks() for _ in range(RUNS)]
            row("start of a program, beside fork and exec", "ms", [ask("starts") for _ in range(RUNS)], bare)
            port = next(actor["os_pid"] for actor in rebeam("ps") if actor["name"] == "server")
            row("own memory of a port", "KiB", [own_memory(port)])
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait()
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
