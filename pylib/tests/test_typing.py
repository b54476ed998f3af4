"""A wrong word or keyword is refused by type checkers, as it is at run time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

RIGHT = """
import rebeam
from rebeam import Actor, Backoff, DynamicSupervisor, Executor, PartitionSupervisor, Registry, Supervisor, child


class Counter(Actor, restart="transient", memory="80MB"):
    def init(self, start: int = 0) -> None: ...


rebeam.child_options(rebeam.function(print), restart="temporary", backoff=None)
rebeam.script("file.py", "argument", name="script")
Supervisor(
    [child(Counter, 1, on_full="drop_new", mailbox="drop", shutdown="infinity", backoff=Backoff()), Registry("r")],
    strategy="rest_for_one",
    auto_shutdown="any_significant",
)
DynamicSupervisor(name="d", max_children=3, max_restarts=10)
PartitionSupervisor(Counter, name="p", partitions=2, on_giveup="park")
Executor(2, memory="1GiB")
rebeam.ref(Counter, "counter").options(priority="high", timeout=None)
rebeam.get_or_start("counter", Counter, restart="temporary")
rebeam.spawn(print, link=True, nice=3)
"""

WRONG = """
class Misspelt(Actor, restart="permanantly"): ...
class Unknown(Actor, restrat="transient"): ...
child(Counter, restart="always")
child(Counter, on_full="wait")
child(Counter, mailbox="keeps")
child(Counter, while_restarting="wait")
child(Counter, on_giveup="parks")
child(Counter, shutdown="kill")
child(Counter, backoff="none")
child(Counter, restrat="temporary")
Supervisor([], strategy="one-for-one")
Supervisor([], auto_shutdown="any")
Supervisor([], max_restart=3)
DynamicSupervisor(strategy="one_for_one")
PartitionSupervisor(Counter, name="p", restart="always")
Registry("r", keys="many")
rebeam.ref(Counter, "counter").options(priority="urgent")
rebeam.get_or_start("counter", Counter, restrat="temporary")
rebeam.start(Counter, on_full="wait")
rebeam.spawn(print, restart="always")
rebeam.module("m", restart="always")
Executor(2, memroy="1GiB")
rebeam.group(Counter, "g").pick("first")
"""


def test_type_checkers_know_the_words_and_the_keywords(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(RIGHT + WRONG)
    options = ["--strict", "--no-error-summary", "--hide-error-context", "--cache-dir", str(tmp_path / "cache")]
    for file, wrong in (("right.py", []), ("wrong.py", WRONG.strip().splitlines())):
        command = [sys.executable, "-m", "mypy", *options, file]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        first = len(RIGHT.splitlines()) + 2
        told = {int(line.split(":")[1]) for line in ran.stdout.splitlines() if ": error:" in line}
        missed = [text for number, text in enumerate(wrong, first) if number not in told]
        assert not missed, ran.stdout
        assert len(told) == len(wrong), ran.stdout
