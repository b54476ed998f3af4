#!/usr/bin/env python3
"""Counts the instructions that the core spends on a cast and on a call, and prints them beside the committed baseline.

Instructions, unlike times, are the same on every run. `--save` makes a new baseline. Needs valgrind; says so without it.
Usage: instructions.py HOT_PATH [--save]
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

BASELINE = Path(__file__).with_name("instructions.json")
FEW, MANY = 1_000, 11_000


def count(program: str, kind: str, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, kind, str(times)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if found is None:
        raise SystemExit(f"error: valgrind said nothing of use: {ran.stderr[-500:]}")
    return int(found[1])


def main() -> None:
    program = sys.argv[1]
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: the core's instructions are not counted")
        return
    now = {
        kind: round((count(program, kind, MANY) - count(program, kind, FEW)) / (MANY - FEW))
        for kind in ("cast", "call")
    }
    if "--save" in sys.argv:
        BASELINE.write_text(json.dumps(now) + "\n")
    before = json.loads(BASELINE.read_text())
    for kind, instructions in now.items():
        change = instructions / before[kind] - 1
        print(
            f"core, one {kind}: {instructions:,} instructions, {change:+.1%} against the baseline of {before[kind]:,}"
        )


main()
