#!/usr/bin/env python3
"""`make bench-batch`: items per second of `rebeam batch`, with its journal, beside pools that keep none, on the same work.

Each item spins for a given time on one of two workers. Medians of three runs, in turns, since the machine drifts.
Usage: batch.py REBEAM
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = ((50, 100_000), (1_000, 10_000), (100_000, 100))
"""Microseconds of each item, and how many."""


def spin(us: int) -> int:
    end = time.perf_counter() + us / 1e6
    while time.perf_counter() < end:
        pass
    return us


def without_journal(us: int, count: int) -> float:
    return ours(us, count, "--no-journal")


def ours(us: int, count: int, *flags: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        source = "import time\nfrom rebeam.batch import pipeline, sink\n\n"
        source += "def spin(us):\n    end = time.perf_counter() + us / 1e6\n    while time.perf_counter() < end: pass\n"
        source += "    return us\n\n"
        source += f"pipe = pipeline('p').source([{us}] * {count}).stage(spin, concurrency=2).sink(sink.jsonl('out'))\n"
        Path(folder, "app.py").write_text(source)
        report = Path(folder, "report.json")
        command = [sys.argv[1], "batch", "app.py", "--report", str(report), *flags]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return count / float(json.loads(report.read_text())["seconds"])


def executor(us: int, count: int) -> float:
    with ProcessPoolExecutor(2) as pool:
        return timed(lambda: list(pool.map(spin, [us] * count)), count)


def pool(us: int, count: int) -> float:
    with multiprocessing.Pool(2) as workers:
        return timed(lambda: workers.map(spin, [us] * count), count)


def joblib(us: int, count: int) -> float:
    from joblib import Parallel, delayed

    with Parallel(2) as parallel:
        parallel([delayed(spin)(1)] * 2)
        return timed(lambda: parallel(delayed(spin)(us) for _ in range(count)), count)


def ray_tasks(us: int, count: int) -> float:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", ignore_reinit_error=True)
    remote = ray.remote(spin)
    ray.get([remote.remote(1)] * 2)
    # A task each: it takes too long to wait for all of the small ones.
    some = min(count, 5_000)
    return timed(lambda: ray.get([remote.remote(us) for _ in range(some)]), some)


def timed(work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    os.environ.setdefault("REBEAM_RUNTIME_DIR", tempfile.mkdtemp())
    peers: dict[str, Callable[[int, int], float]] = {
        "rebeam batch, journal and all": ours,
        "rebeam batch --no-journal": without_journal,
        "ProcessPoolExecutor.map": executor,
        "multiprocessing.Pool.map (chunks)": pool,
        "joblib (loky)": joblib,
        "ray, a task each": ray_tasks,
    }
    for package, name in (("joblib", "joblib (loky)"), ("ray", "ray, a task each")):
        if importlib.util.find_spec(package) is None:
            del peers[name]
    for us, count in WORK:
        runs: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(3):
            for name, peer in peers.items():
                runs[name].append(peer(us, count))
        floor = statistics.median(runs["ProcessPoolExecutor.map"])
        print(f"{count:,} items of {us:,} µs")
        for name, found in runs.items():
            rate = statistics.median(found)
            print(f"  {name:<36} {rate:>10,.0f}/s  ({min(found):,.0f} … {max(found):,.0f})  {rate / floor:.2f}", flush=True)


if __name__ == "__main__":
    main()
