"""A census of the standard library, taken by actors that are killed while they work.

One coordinator hands out every `.py` file of the standard library of this Python, a few parsers read them, one
aggregator adds up. On a few files the parser comes to grief, in four ways: an uncaught exception, `os._exit`, a
segmentation fault, and an endless loop that is killed from outside. The first two hit a file once, and the file is
read again; the last two hit every time, so that the file is poison and is left out, by name and with its cause.

At the end the totals are compared with those of a plain loop over the same files: the node ends with exit code 0 if
they are equal, and gives up with 1 if they are not.
"""

from __future__ import annotations

import os
import signal
import sysconfig
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rebeam
from rebeam import Actor, Supervisor, child
from scan import Census, scan

PARSERS = 4
ATTEMPTS = 2
HANG_LIMIT = 1.0

# Which files bring a parser down, and how: these two once, so that the second attempt succeeds …
ACCIDENTS = {"json/decoder.py": "exception", "email/message.py": "exit"}
# … and these every time.
POISON = {"ctypes/util.py": "segfault", "asyncio/locks.py": "hang"}


def library_files() -> list[str]:
    """Every Python file of the standard library, as paths below its folder."""
    root = Path(sysconfig.get_path("stdlib"))
    outside = {"site-packages", "dist-packages", "__pycache__"}
    files = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(str(path) for path in files if not outside.intersection(path.parts))


class Parser(Actor):
    """Reads one file after another."""

    def init(self) -> None:
        self.root = Path(sysconfig.get_path("stdlib"))
        self.aggregator = rebeam.ref(Aggregator, "aggregator")

    def os_pid(self) -> int:
        return os.getpid()

    def parse(self, file: str, mishap: str | None) -> None:
        if mishap == "exception":
            raise RuntimeError(f"an accident with {file}")
        if mishap == "exit":
            os._exit(70)
        if mishap == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        while mishap == "hang":
            pass
        self.aggregator.call(Aggregator.add, file, scan(self.root / file))


class Aggregator(Actor):
    """Adds up what the parsers found."""

    def init(self) -> None:
        self.census = Census()
        self.files: set[str] = set()

    def add(self, file: str, found: Census) -> None:
        if file not in self.files:
            self.files.add(file)
            self.census += found

    def totals(self) -> tuple[set[str], Census]:
        return self.files, self.census


class Coordinator(Actor):
    """Hands out the files, counts the deaths, compares the totals and reports."""

    def init(self) -> None:
        self.deaths: Counter[str] = Counter()
        self.poison: dict[str, str] = {}
        self.ref.cast(Coordinator.run)

    def run(self) -> None:
        started = time.monotonic()
        files = library_files()
        queue = iter(files)
        with ThreadPoolExecutor(PARSERS) as pool:
            # Each thread keeps one parser busy; the iterator is what they share.
            for feeder in [pool.submit(self.feed, f"parser-{n}", queue) for n in range(1, PARSERS + 1)]:
                feeder.result()
        took = time.monotonic() - started
        done, census = rebeam.ref(Aggregator, "aggregator").call(Aggregator.totals)
        self.check(files, done, census)
        self.report(files, census, took)
        rebeam.shutdown()

    def feed(self, name: str, queue: object) -> None:
        parser = rebeam.ref(Parser, name).options(timeout=30)
        for file in queue:  # type: ignore[attr-defined]
            cause = ""
            for attempt in range(1, ATTEMPTS + 1):
                mishap = POISON.get(file) or (ACCIDENTS.get(file) if attempt == 1 else None)
                cause = self.attempt(parser, file, mishap)
                if not cause:
                    break
                self.deaths[cause] += 1
            if cause:
                self.poison[file] = cause

    def attempt(self, parser: rebeam.ActorRef[Parser], file: str, mishap: str | None) -> str:
        """Has a file read; the cause of death if the parser died of it, else nothing."""
        os_pid = parser.call(Parser.os_pid)
        try:
            parser.options(timeout=HANG_LIMIT if mishap == "hang" else 30).call(Parser.parse, file, mishap)
        except rebeam.ActorDied as died:
            return str(died.reason)
        except rebeam.CallTimeout:
            os.kill(os_pid, signal.SIGKILL)
            return "endless loop, killed from outside"
        except RuntimeError as error:
            return f"uncaught {type(error).__name__}"
        return ""

    def check(self, files: list[str], done: set[str], census: Census) -> None:
        """Raises unless every file is accounted for and the totals are those of a plain loop."""
        assert done | set(self.poison) == set(files), "a file is neither counted nor named"
        assert not done & set(self.poison), "a poisoned file was counted"
        assert set(self.poison) == set(POISON), f"unexpected poison: {self.poison}"
        root = Path(sysconfig.get_path("stdlib"))
        plain = Census()
        for file in files:
            if file not in self.poison:
                plain += scan(root / file)
        assert census == plain, "the totals differ from those of a plain loop"

    def report(self, files: list[str], census: Census, took: float) -> None:
        print(f"{len(files)} files, {PARSERS + 2} actors, {sum(self.deaths.values())} deaths, {took:.1f} s")
        print(f"  {census.definitions} definitions, {census.imports} imports, {census.names.total()} names")
        print(f"  most used names: {', '.join(name for name, _ in census.names.most_common(8))}")
        largest = ", ".join(f"{module} ({count})" for module, count in census.modules.most_common(3))
        print(f"  most definitions: {largest}")
        for cause, count in self.deaths.most_common():
            print(f"  died {count} x: {cause}")
        for file, cause in sorted(self.poison.items()):
            print(f"  left out: {file} ({cause})")
        print("  totals equal those of a plain loop over the same files")


parsers = Supervisor(
    [child(Parser, name=f"parser-{n}") for n in range(1, PARSERS + 1)],
    id="parsers",
    max_restarts=20,
)

# The coordinator may not fail: if its check does, the tree gives up and `rebeam` ends with 1.
tree = Supervisor(
    [child(Aggregator, name="aggregator"), parsers, child(Coordinator, name="coordinator")], max_restarts=0
)
