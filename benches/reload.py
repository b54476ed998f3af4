"""How long a reload takes, from the save to the first answer of new code, beside `uvicorn --reload` of the same imports.

Prints JSON: for each row its values and those of its floor. Run by `make bench`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REBEAM = os.path.abspath(sys.argv[1])
SAVES = int(sys.argv[2]) if len(sys.argv) > 2 else 15
PYTHON = sys.executable

APP = """
{imports}
import rebeam
from rebeam import Actor, Supervisor, child
import version

class Held(Actor):
    def init(self, size=0):
        self.state = list(range(size))
    def version(self):
        return version.VERSION

tree = Supervisor([child(Held, {size}, name=f"held{{n}}") for n in range({count})])
"""

WEB = """
{imports}
import version

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": str(version.VERSION).encode()}})
"""


class Node:
    """A node under `rebeam up`, in a directory of its own."""

    def __init__(
        self, imports: str = "", size: int = 0, count: int = 1, preload: str = "[]", *, watches: bool = False
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="rebeam-bench-")
        self.path = Path(self._directory.name)
        (self.path / "app.py").write_text(APP.format(imports=imports, size=size, count=count))
        (self.path / "rebeam.toml").write_text(f"app = 'app:tree'\npreload = {preload}\nprobation = {{ seconds = 0 }}\n")
        self.version = 0
        self.save()
        self.process = subprocess.Popen(
            [REBEAM, "up", *([] if watches else ["--no-reload"])], cwd=self.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for line in self.process.stderr or ():
            if "up with" in line:
                break

    def save(self) -> float:
        self.version += 1
        (self.path / "version.py").write_text(f"VERSION = {self.version}\n")
        return time.monotonic()

    def reload(self) -> list[float]:
        """One by hand; how long each stood still, in seconds."""
        self.version += 1
        (self.path / "version.py").write_text(f"VERSION = {self.version}\n")
        ran = subprocess.run([REBEAM, "reload", "--json"], cwd=self.path, capture_output=True, text=True, check=True)
        return [change["still_s"] for change in json.loads(ran.stdout)["changes"]]

    def processes(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def down(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()
        self._directory.cleanup()


def to_first_answer(imports: str, preload: str) -> list[float]:
    """Milliseconds from a save to the first answer of the new code."""
    node = Node(imports, preload=preload, watches=True)
    import rebeam

    times = []
    with rebeam.connect(node.path) as connected:
        held = connected.ref(rebeam.Actor, "held0")
        for _ in range(SAVES):
            time.sleep(0.1)
            since = node.save()
            while held.call.version() != node.version:
                pass
            times.append((time.monotonic() - since) * 1000)
    node.down()
    return times


def uvicorn_to_first_answer(imports: str) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="rebeam-bench-") as directory, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        path = Path(directory)
        (path / "web.py").write_text(WEB.format(imports=imports))
        (path / "version.py").write_text("VERSION = 1\n")
        process = subprocess.Popen(
            [PYTHON, "-m", "uvicorn", "web:app", "--reload", "--port", str(port), "--log-level", "error"], cwd=path
        )
        times = []
        for version in range(1, SAVES + 2):
            time.sleep(0.3)
            since = time.monotonic()
            (path / "version.py").write_text(f"VERSION = {version}\n")
            while ask(port) != str(version):
                time.sleep(0.001)
            if version > 1:
                times.append((time.monotonic() - since) * 1000)
        process.send_signal(signal.SIGINT)
        process.wait()
        return times


def ask(port: int) -> str | None:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def standing_still(size: int, count: int, reloads: int) -> list[float]:
    """Milliseconds for which each actor took no mail."""
    node = Node(size=size, count=count)
    still = [seconds * 1000 for _ in range(reloads) for seconds in node.reload()]
    node.down()
    return still


def hundred_through() -> list[float]:
    node = Node(count=100)
    times = []
    for _ in range(5):
        began = time.monotonic()
        node.reload()
        times.append(time.monotonic() - began)
    node.down()
    return times


def resident(os_pid: int) -> int:
    status = Path(f"/proc/{os_pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def growth() -> dict[str, list[float]]:
    """What a node holds after 5 reloads and after 100."""
    node = Node(count=5)
    found: dict[str, list[float]] = {"KiB": [], "descriptors": [], "processes": []}
    for reloads in (5, 95):
        for _ in range(reloads):
            node.reload()
        time.sleep(0.5)
        found["KiB"].append(resident(node.process.pid))
        found["descriptors"].append(len(os.listdir(f"/proc/{node.process.pid}/fd")))
        found["processes"].append(len(node.processes()))
    node.down()
    return found


def main() -> None:
    rows: list[dict[str, object]] = []

    def row(name: str, unit: str, values: list[float], floor: list[float] | None = None) -> None:
        rows.append({"name": name, "unit": unit, "values": values, "floor": floor or []})
        print(f"{name}: {statistics.median(values):.1f} {unit}", file=sys.stderr)

    row("save to answer, no imports", "ms", to_first_answer("", "[]"), uvicorn_to_first_answer(""))
    pandas = "import pandas"
    row("save to answer, pandas preloaded", "ms", to_first_answer(pandas, '["pandas"]'), uvicorn_to_first_answer(pandas))
    row("save to answer, pandas not preloaded", "ms", to_first_answer(pandas, "[]"))
    small = standing_still(0, 20, 20)
    row("standing still, p50", "ms", [percentile(small, 0.5)])
    row("standing still, p99", "ms", [percentile(small, 0.99)])
    large = standing_still(250_000, 5, 20)
    row("standing still with 1 MB, p99", "ms", [percentile(large, 0.99)])
    row("100 changed actors are through", "s", hundred_through())
    found = growth()
    for unit, (few, many) in ((unit, values) for unit, values in found.items()):
        row(f"held after 100 reloads, {unit}", unit, [many], [few])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
