#!/usr/bin/env python3
"""`make soak`: a node in production under load, with a kill every second, while somebody asks for health and figures.

Prints what the supervisor has (memory, descriptors, threads) every half a minute, and at the end whether it grew from the
first third of the time to the last: memory that is kept shows there, memory that comes and goes does not.
Usage: soak.py REBEAM [SECONDS]
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

SHOP = Path(__file__).parent.parent / "examples/shop"


def main() -> None:
    rebeam, seconds = sys.argv[1], float(sys.argv[2] if len(sys.argv) > 2 else 600)
    environment = {**os.environ, "REBEAM_RUNTIME_DIR": tempfile.mkdtemp()}

    def run(*words: str) -> Any:
        ran = subprocess.run([rebeam, *words], cwd=SHOP, env=environment, capture_output=True, text=True)
        return json.loads(ran.stdout) if ran.returncode == 0 and ran.stdout.strip() else None

    node = subprocess.Popen(
        [rebeam, "run", "app.py", "--http", "127.0.0.1:0"], cwd=SHOP, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    address = ""
    for line in node.stdout:
        message = json.loads(line)["message"]
        if "http://" in message:
            address = message.split(" at ")[1]
        if "up with" in message:
            break
    # The log is read on, as in production.
    reader = subprocess.Popen(["cat"], stdin=node.stdout, stdout=subprocess.DEVNULL)
    samples: list[dict[str, float]] = []
    kills = unready = 0
    started = time.monotonic()
    shown = -1.0
    while (now := time.monotonic() - started) < seconds:
        victims = [it for it in run("ps", "--json") or [] if it["os_pid"]]
        if victims:
            os.kill(random.choice(victims)["os_pid"], signal.SIGKILL)
            kills += 1
        time.sleep(0.5)
        try:
            urllib.request.urlopen(f"{address}/readyz").read()
        except urllib.error.HTTPError:
            unready += 1
        urllib.request.urlopen(f"{address}/metrics").read()
        samples.append(sample(node.pid))
        if now - shown >= 30:
            shown = now
            print(f"{now:5.0f} s  {shown_as(samples[-1])}", flush=True)
        time.sleep(max(0.0, 1 - (time.monotonic() - started - now)))
    sold = run("call", "--json", "ledger", "total")
    run("down")
    node.wait(60)
    reader.wait(10)
    third = len(samples) // 3
    print(f"{kills} kills in {seconds:.0f} s; not ready at {unready} of {len(samples)} looks; the ledger has {sold}")
    for key in samples[0]:
        first, last = (statistics.median(it[key] for it in part) for part in (samples[:third], samples[-third:]))
        print(f"{key}: {first:,.0f} in the first third, {last:,.0f} in the last; exit code {node.returncode}")


def sample(os_pid: int) -> dict[str, float]:
    rollup = Path(f"/proc/{os_pid}/smaps_rollup").read_text()
    pss = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return {
        "memory, KiB": float(pss.split()[1]),
        "descriptors": len(os.listdir(f"/proc/{os_pid}/fd")),
        "threads": len(os.listdir(f"/proc/{os_pid}/task")),
    }


def shown_as(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:,.0f}" for key, value in figures.items())


if __name__ == "__main__":
    main()
