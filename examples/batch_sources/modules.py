"""A batch over real files: what Python's standard library is made of, with a crash, a leak and a hang among them.

`rebeam batch modules.py` reads every module, by two stages: one parses it, and one counts what is in it. Three
of the files do to their worker what bad input does to native code. Kill what you like of it meanwhile, run it again,
and compare `out.jsonl` with a plain loop (`check.py`).
"""

import ast
import ctypes
import os
import sysconfig
import time

from rebeam.batch import pipeline, sink, source

ROOT = sysconfig.get_path("stdlib")

CRASHES, LEAKS, HANGS = "antigravity.py", "this.py", "sched.py"
"""What stands for the documents that nobody expected."""


def parse(path: str) -> dict[str, object]:
    """Reads a module."""
    name = os.path.relpath(path, ROOT)
    if name == CRASHES:
        ctypes.string_at(0)
    if name == LEAKS:
        hoard = []
        while True:
            hoard.append(os.urandom(1 << 20))
    if name == HANGS:
        time.sleep(3600)
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    return {"name": name, "lines": text.count("\n"), "tree": ast.dump(ast.parse(text))}


def count(module: dict[str, object]) -> dict[str, object]:
    """Counts what is in it."""
    tree = str(module["tree"])
    return {
        "name": module["name"],
        "lines": module["lines"],
        "functions": tree.count("FunctionDef("),
        "classes": tree.count("ClassDef("),
    }


pipe = (
    pipeline("sources")
    .source(source.files(os.path.join(ROOT, "*.py")))
    .stage(parse, concurrency=2, memory="300MB", timeout=2, retries=1)
    .stage(count)
    .sink(sink.jsonl("out.jsonl"))
)
